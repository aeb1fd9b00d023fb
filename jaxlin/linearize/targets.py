r"""Targets: the number that an analysis explains, from words to a direction of the residual stream.

A target is one number read from the output $f$: the logit of a token, the difference of two logits, or $u \cdot f$ for
a direction $u$. `resolve_target` converts a user's argument to an array, `read_target` evaluates it, and
`target_direction` pulls it back through the frozen final norm to the residual stream after the last block.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.common.annotations import described, is_numeric
from jaxlin.common.arguments import checked
from jaxlin.common.arrays import equal_by_identity
from jaxlin.common.errors import JaxlinError, TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.linearize.frozen import Recording
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Record, Replay
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings
from jaxlin.tokenizer import Tokenizer

Token = int | Int[Array, ""]
"""A token id: an integer, or an array of one, which may be traced within a transform."""

Target = Token | tuple[Token, Token] | Int[Array | np.ndarray, "2"] | Float[Array | np.ndarray, " k"]
"""A token id; a pair of them, for the difference of their logits; or a direction of the output."""

Words = str | tuple[str | int, str | int]
"""A word that is one token, or a pair of such words, one of which may be a token id."""

ResolvedTarget = Int[Array, ""] | Int[Array, "2"] | Float[Array, " d"]
"""A target as an array, as `resolve_target` returns it."""


@equal_by_identity
class TargetDirection(NamedTuple):
    r"""A target as a function of the residual stream $h$ after the last block, $\sum_t g_t \cdot h_t +$ ``bias``.

    Attributes:
        value: the value of the target, from the forward pass.
        bias: the part of it that comes from the biases of the final norm and of the unembedding.
        direction: $g$, zero at all positions except the one that is read.
    """

    value: Float[Array, ""]
    bias: Float[Array, ""]
    direction: Float[Array, "t d"]


@checked
def resolve_target(
    model: Decoder,
    target: Target | Words,
    x: Float[Embeddings, "t d"],
    position: int,
    tokenizer: Tokenizer | None = None,
) -> ResolvedTarget:
    """The token id, the two ids or the direction that `target` names, as an array. It accepts its own results too.

    A word is looked up as written and with a space before it; if both are single tokens, the one with the larger logit
    after `position` of `x` is taken. Words are resolved outside of `jax.jit` and `jax.vmap`; if `target` is traced
    within them, only its shape is checked.

    Args:
        model: the decoder.
        target: a token id, a word, a pair of these, or a direction of the output.
        x: the input embeddings.
        position: the position whose logits decide between two spellings.
        tokenizer: the tokenizer of the model, which only words need.

    Raises:
        JaxlinError: an id is outside the vocabulary, both tokens are equal, a direction has another width than the
            output or contains NaN or infinity, or there are words without a tokenizer.
        TokenizerError: a word is not a single token in either spelling.
    """
    model.check_embeddings(x)
    parts: tuple[Any, ...] = tuple(target) if isinstance(target, tuple | list) else (target,)
    if any(isinstance(part, str) for part in parts):
        ids = _resolve_words(model, tokenizer, parts, x, position)
        return _checked_array(model, ids[0] if isinstance(target, str) else ids, x.dtype)
    return _checked_array(model, target, x.dtype)


@checked
def read_target(model: Decoder, output: Float[Array, " d"], target: ResolvedTarget, ctx: Context) -> Float[Array, ""]:
    """The value of `target` at an output after the final norm; `ctx` records or replays the softcap of its logits."""
    if jnp.issubdtype(target.dtype, jnp.floating):
        return jnp.dot(target, output, precision=HIGHEST)
    logits = model.unembed(output, ctx, target.reshape(-1))
    return logits[0] - jnp.sum(logits[1:])


@checked
def target_direction(
    model: Decoder, recording: Recording, target: ResolvedTarget, position: int | Int[Array, ""]
) -> TargetDirection:
    """The direction of the residual stream after the last block that reads `target` at `position`.

    It is pulled back through the unembedding, the frozen final norm and, if the model caps its logits, the frozen ratio
    of a capped logit to the uncapped one.
    """
    frozen = recording.frozen
    head = Record(frozen.rule)
    value = read_target(model, recording.output[position], target, Context(head))

    def after_blocks(stream: Float[Array, "t d"]) -> Float[Array, ""]:
        output = model.norm(stream, Context(Replay(frozen.norm)))
        return read_target(model, output[position], target, Context(Replay(head.factors)))

    # The function is affine, so that its value at zero is the part that comes from biases.
    bias, pull = jax.vjp(after_blocks, jnp.zeros_like(recording.stream))
    return TargetDirection(value, bias, pull(jnp.ones_like(bias))[0])


def ids_of_words(tokenizer: Tokenizer, words: tuple[Any, ...], logits: Float[np.ndarray, " vocab"]) -> tuple[Any, ...]:
    """The token id of each of `words`, see `likelier_spelling`; ids among them are returned unchanged."""
    return tuple(likelier_spelling(tokenizer, word, logits) if isinstance(word, str) else word for word in words)


def likelier_spelling(tokenizer: Tokenizer, word: str, logits: Float[np.ndarray, " vocab"]) -> int:
    """The token id of `word`, as written or with a space before it; if both are single tokens, the likelier one.

    Raises:
        TokenizerError: neither spelling is a single token.
    """
    ids = []
    for spelling in (word, f" {word}"):
        with contextlib.suppress(TokenizerError):
            ids.append(tokenizer.to_single_token(spelling))
    # A tokenizer may have tokens for which the model has no logit; `resolve_target` refuses their ids.
    with_logits = [token for token in ids if token < len(logits)]
    if with_logits:
        return max(with_logits, key=lambda token: logits[token])
    return ids[0] if ids else tokenizer.to_single_token(word)  # raises the error that names its tokens


def _resolve_words(
    model: Decoder, tokenizer: Tokenizer | None, words: tuple[Any, ...], x: Float[Embeddings, "t d"], position: int
) -> tuple[Any, ...]:
    """The token ids of `words`, at least one of which is text, by the logits at `position`."""
    if tokenizer is None:
        raise JaxlinError(
            f"Target: expected a token id; found {quoted(words[0] if len(words) == 1 else words)}. "
            "Pass tokenizer.to_single_token(word), or tokenizer= where there is such an argument."
        )
    logits = np.asarray(model.unembed(jax.jit(lambda model, x: model(x))(model, x)[position]))
    ids = ids_of_words(tokenizer, words, logits)
    if len(ids) == 2 and ids[0] == ids[1]:
        raise JaxlinError(f"Target: expected two different words; found {quoted(tokenizer.token(ids[0]))} for both.")
    return ids


def _checked_array(model: Decoder, target: Any, dtype: Any) -> ResolvedTarget:
    """`target` as an array after a check of its values, or only of its shape if it is traced."""
    traced = any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(target))
    if not traced and not is_numeric(target):
        raise JaxlinError(
            f"Target: expected a token id, a pair of them, or a direction of floats; found {described(target)}. "
            "tokenizer.to_single_token gives the id of a word."
        )
    array: Any = jnp.asarray(target) if traced else np.asarray(target)
    if jnp.issubdtype(array.dtype, jnp.floating) and array.ndim:
        features = model.config.hidden_size
        if array.shape != (features,):
            raise JaxlinError(f"Target: expected a direction of shape ({features},); found {array.shape}.")
        if not traced and not np.isfinite(array).all():
            raise JaxlinError("Target: expected a direction of finite numbers; found NaN or infinity.")
        return jnp.asarray(array, dtype)
    if array.dtype.kind not in "iu" or array.shape not in ((), (2,)):
        description = f"{array.dtype} of shape {array.shape}" if array.size > 2 else quoted(target)
        raise JaxlinError(
            f"Target: expected a token id, a pair of them, or a direction of floats; found {description}. "
            "tokenizer.to_single_token gives the id of a word."
        )
    if traced:
        return array
    vocab, ids = model.config.vocab_size, array.reshape(-1)
    if (ids < 0).any() or (ids >= vocab).any():
        raise JaxlinError(f"Target: expected token ids in 0..{vocab - 1}; found {quoted(target)}.")
    if len(set(ids.tolist())) < len(ids):
        raise JaxlinError(f"Target: expected two different tokens; found {ids[0]} twice.")
    return jnp.asarray(array)
