r"""Exact additive attribution: what each part of the input contributes to a logit, summing to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.decoder import Decoder
from jaxlin.errors import JaxlinError
from jaxlin.layers import HIGHEST
from jaxlin.local_map import LocalMap, local_map

Target = int | tuple[int, int] | Float[Array, " d"]
"""A token id; a pair of them, for the difference of their logits; or a direction of the output."""


@dataclass(frozen=True)
class Attribution:
    r"""$u \cdot f(x) = \sum_t u \cdot J_t x_t + u \cdot b$ for a direction $u$, the target's row of the unembedding.

    Attributes:
        value: $u \cdot f(x)$ of the forward pass: the logit, or difference of logits.
        tokens: the contribution $u \cdot J_t x_t$ of each input token, ``[t]``.
        bias: the contribution $u \cdot b$ of the additive biases.
    """

    value: float
    tokens: Float[np.ndarray, " t"]
    bias: float

    @property
    def defect(self) -> float:
        """How far the contributions miss the value, relative to the largest of them."""
        scale = max(abs(self.value), float(np.abs(self.tokens).max()), abs(self.bias))
        return abs(float(self.tokens.sum()) + self.bias - self.value) / scale if scale else 0.0


def attribute(
    model: Decoder, x: Float[Array, "t d"], target: Target | Sequence[int], *, position: int = -1
) -> Attribution:
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


def attribute_map(lmap: LocalMap, target: Target | Sequence[int]) -> Attribution:
    """`attribute` for a map at hand."""
    u = direction(lmap.model, target).astype(lmap.output.dtype)
    tokens = jnp.einsum("td,td->t", lmap.rmatvec(u), lmap.x, precision=HIGHEST)
    value, bias = (float(jnp.dot(u, part, precision=HIGHEST)) for part in (lmap.output, lmap.bias))
    return Attribution(value, np.asarray(tokens), bias)


def direction(model: Decoder, target: Target | Sequence[int]) -> Float[Array, " d"]:
    """The direction of the output that `target` reads: a row of the unembedding, a difference of two, or itself."""
    given = np.asarray(target)
    if given.dtype.kind == "f":
        if given.shape != (model.config.hidden_size,):
            raise JaxlinError(
                f"Target: expected a direction of shape ({model.config.hidden_size},); found {given.shape}."
            )
        return jnp.asarray(target)
    if given.dtype.kind not in "iu" or given.shape not in ((), (2,)):
        raise JaxlinError(f"Target: expected a token id, a pair of them, or a direction; found {target!r}.")
    vocab = model.config.vocab_size
    if (given < 0).any() or (given >= vocab).any():
        raise JaxlinError(f"Target: expected token ids in 0..{vocab - 1}; found {target!r}.")
    rows = model.unembedding(given.reshape(-1))
    if len(rows) == 1:
        return rows[0]
    if given[0] == given[1]:
        raise JaxlinError(f"Target: expected two different tokens; found {int(given[0])} twice.")
    return rows[0] - rows[1]
