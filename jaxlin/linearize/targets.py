"""What an attribution is of: a token, the difference of two, or any direction of the output."""

import contextlib
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.common.errors import JaxlinError, TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.nn.decoder import Decoder
from jaxlin.tokenizer import Tokenizer

Token = int | Int[Array, ""]
"""A token id; an array of one, perhaps traced, within a transform."""

Target = Token | tuple[Token, Token] | Float[Array | np.ndarray, " k"]
"""A token id; a pair of them, for the difference of their logits; or a direction of the output."""

Words = str | tuple[str | int, str | int]
"""A word that is one token, or a pair of them, of which one may be an id."""


def checked_target(model: Decoder, target: Target, dtype: Any) -> Float[Array, " d"] | Int[Array, " n"]:
    """A direction, or the ids of one token or two; of those within a transform, which have no values, the shape."""
    traced = any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(target))
    given: Any = jnp.asarray(target) if traced else np.asarray(target)
    if jnp.issubdtype(given.dtype, jnp.floating) and given.ndim:
        features = model.config.hidden_size
        if given.shape != (features,):
            raise JaxlinError(f"Target: expected a direction of shape ({features},); found {given.shape}.")
        if not traced and not np.isfinite(given).all():
            raise JaxlinError("Target: expected a direction of finite numbers; found NaN or infinity.")
        return jnp.asarray(given, dtype)
    if given.dtype.kind not in "iu" or given.shape not in ((), (2,)):
        found = f"{given.dtype} of shape {given.shape}" if given.size > 2 else repr(target)
        raise JaxlinError(
            f"Target: expected a token id, a pair of them, or a direction of floats; found {found}. "
            "tokenizer.to_single_token gives the id of a word."
        )
    vocab, ids = model.config.vocab_size, given.reshape(-1)
    if traced:
        return ids
    if (ids < 0).any() or (ids >= vocab).any():
        raise JaxlinError(f"Target: expected token ids in 0..{vocab - 1}; found {quoted(target)}.")
    if len(set(ids.tolist())) < len(ids):
        raise JaxlinError(f"Target: expected two different tokens; found {ids[0]} twice.")
    return jnp.asarray(ids)


def without_words(
    model: Decoder, tokenizer: Tokenizer | None, target: Target | Words, x: Float[Array, "t d"], position: int
) -> Target:
    """`target`, or the ids of its words, each the likelier of its spellings after `position`.

    Raises:
        JaxlinError: no tokenizer to read words with.
        TokenizerError: a word that is not one token, in neither spelling.
    """
    given = tuple(target) if isinstance(target, tuple | list) else (target,)
    if not any(isinstance(each, str) for each in given):
        return cast(Target, target)
    if tokenizer is None:
        raise JaxlinError(
            f"Target: expected a token id; found {quoted(target)}. "
            "Give tokenizer.to_single_token of a word, or tokenizer= where that is taken."
        )
    logits = np.asarray(model.unembed(jax.jit(lambda model, x: model(x))(model, x)[position]))
    ids = spelled(tokenizer, given, logits)
    if len(ids) == 2 and ids[0] == ids[1]:
        raise JaxlinError(f"Target: expected two different words; found {quoted(tokenizer.token(ids[0]))} for both.")
    return ids[0] if isinstance(target, str) else cast(Target, ids)


def spelled(tokenizer: Tokenizer, words: tuple[Any, ...], logits: Float[np.ndarray, " vocab"]) -> tuple[Any, ...]:
    """The id of each of `words`, see `likelier_spelling`; what is no text stays as it is."""
    return tuple(likelier_spelling(tokenizer, word, logits) if isinstance(word, str) else word for word in words)


def likelier_spelling(tokenizer: Tokenizer, word: str, logits: Float[np.ndarray, " vocab"]) -> int:
    """The id of `word`, as written or with a space before it: of those that are one token, the likelier.

    Raises:
        TokenizerError: neither is one token.
    """
    ids = []
    for form in (word, f" {word}"):
        with contextlib.suppress(TokenizerError):
            ids.append(tokenizer.to_single_token(form))
    # A tokenizer may have tokens that the model has no logit for; `checked_target` names the id of one.
    with_logits = [token for token in ids if token < len(logits)]
    if with_logits:
        return max(with_logits, key=lambda token: logits[token])
    return ids[0] if ids else tokenizer.to_single_token(word)  # to say what it is instead
