r"""Exact additive attribution: what each part of the input contributes to a logit, summing to it."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.decoder import Decoder
from jaxlin.errors import JaxlinError
from jaxlin.hold import Record, Replay
from jaxlin.layers import HIGHEST
from jaxlin.local_map import LocalMap, local_map

Target = int | tuple[int, int] | Float[Array | np.ndarray, " k"]
"""A token id; a pair of them, for the difference of their logits; or a direction of the output."""


@dataclass(frozen=True)
class Attribution:
    r"""$u \cdot f(x) = \sum_t u \cdot J_t x_t + u \cdot b$ for the direction $u$ that a target reads.

    For a logit, $u$ is its row of the unembedding, times the held ratio where the model caps its logits; a bias of the
    unembedding counts to that of the model.

    Attributes:
        value: the logit, difference of logits or $u \cdot f(x)$, from the forward pass.
        tokens: the contribution $u \cdot J_t x_t$ of each input token, ``[t]``.
        bias: the contribution of the additive biases.
    """

    value: float
    tokens: Float[np.ndarray, " t"]
    bias: float

    @property
    def defect(self) -> float:
        """How far the contributions miss the value, relative to the largest of them."""
        scale = max(abs(self.value), float(np.abs(self.tokens).max()), abs(self.bias))
        return abs(float(self.tokens.sum()) + self.bias - self.value) / scale if scale else 0.0


def attribute(model: Decoder, x: Float[Array, "t d"], target: Target, *, position: int = -1) -> Attribution:
    """The exact contribution of each input token, and of the biases, to the logit of `target` at `position`.

    Args:
        model: any decoder.
        x: the input embeddings.
        target: a token id, a pair of ids for the difference of their logits, or a direction ``[d]``.
        position: where the logit is read; negative counts from the last token.

    Raises:
        JaxlinError: a target outside the vocabulary, or a pair of equal ones.
        SiteError: no such position.
    """
    return attribute_map(local_map(model, x, position=position), target)


def attribute_map(lmap: LocalMap, target: Target) -> Attribution:
    """`attribute` for a map at hand."""
    reads, value = _reading(lmap.model, lmap.output, target)
    offset, u = float(reads(jnp.zeros_like(lmap.output))), jax.grad(reads)(lmap.output)
    tokens = jnp.einsum("td,td->t", lmap.rmatvec(u), lmap.x, precision=HIGHEST)
    bias = offset + float(jnp.dot(u, lmap.bias, precision=HIGHEST))
    return Attribution(float(value), np.asarray(tokens), bias)


def _reading(model: Decoder, output: Float[Array, " d"], target: Target) -> tuple[Callable[[Array], Array], Array]:
    """What `target` reads of a point after the final norm, with a softcap of the logits held; and its value."""
    given = np.asarray(target)
    if given.dtype.kind == "f":
        features = model.config.hidden_size
        if given.shape != (features,):
            raise JaxlinError(f"Target: expected a direction of shape ({features},); found {given.shape}.")
        u = jnp.asarray(given, output.dtype)
        return lambda h: jnp.dot(u, h, precision=HIGHEST), jnp.dot(u, output, precision=HIGHEST)
    if given.dtype.kind not in "iu" or given.shape not in ((), (2,)):
        raise JaxlinError(f"Target: expected a token id, a pair of them, or a direction; found {target!r}.")
    vocab, ids = model.config.vocab_size, given.reshape(-1)
    if (ids < 0).any() or (ids >= vocab).any():
        raise JaxlinError(f"Target: expected token ids in 0..{vocab - 1}; found {target!r}.")
    if len(set(ids.tolist())) < len(ids):
        raise JaxlinError(f"Target: expected two different tokens; found {ids[0]} twice.")

    def read(logits: Array) -> Array:
        return logits[ids[0]] if len(ids) == 1 else logits[ids[0]] - logits[ids[1]]

    recorded = Record()
    value = read(model.unembed(output, recorded))
    return lambda h: read(model.unembed(h, Replay(recorded.values))), value
