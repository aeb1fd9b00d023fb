r"""Attention patterns $p_{hts}$, which mix the values of the tokens $s$ for the query $t$ in head $h$.

A pattern is a frozen factor with two axes of tokens, so it is a type that knows them. `Dense` stores the numbers;
`jaxlin.nn.blockwise.Blocked` computes them again, block by block. A new kind of pattern is another subclass.
"""

import abc
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.nn.layers import at_least_float32, product


class Pattern(abc.ABC):
    """How each head mixes the values of tokens, at one input."""

    @abc.abstractmethod
    def first(self, tokens: int) -> "Pattern":
        """The pattern of the first `tokens` queries, which see no later key; also of patterns stacked over layers."""

    @abc.abstractmethod
    def row(self, position: int | Int[Array, ""]) -> Float[Array, "h s"]:
        """The numbers of the query at `position`."""

    @abc.abstractmethod
    def array(self) -> Float[Array, "h t s"]:
        """All numbers of the pattern."""

    @abc.abstractmethod
    def mix(self, values: Float[Array, "s *b n k"], last: int = 0) -> Float[Array, "q *b h k"]:
        r"""$\sum_s p_{hts}\,v_s$, linear in the values, for the last `last` queries; 0 for all.

        Query head $h$ of $H$ reads key-value head $\lfloor h n / H \rfloor$.
        """


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense(Pattern):
    """A pattern as an array.

    Attributes:
        probabilities: ``[h, query, key]``.
    """

    probabilities: Leaf

    def first(self, tokens: int) -> "Dense":
        """The first rows and columns."""
        return Dense(self.probabilities[..., :tokens, :tokens])

    def row(self, position: int | Int[Array, ""]) -> Float[Array, "h s"]:
        """One row of each head."""
        return self.probabilities[:, position]

    def array(self) -> Float[Array, "h t s"]:
        """The array."""
        return self.probabilities

    def mix(self, values: Float[Array, "s *b n k"], last: int = 0) -> Float[Array, "q *b h k"]:
        """One product."""
        return mix(self.probabilities[:, -last:], values)


def first_tokens(factors: Any, tokens: int) -> Any:
    """The first `tokens` positions of frozen factors that are stacked over layers.

    Tokens are the leading axis of a factor, after the layers; a factor of which that is not true is a `Pattern`.
    """

    def first(factor: Any) -> Any:
        return factor.first(tokens) if isinstance(factor, Pattern) else factor[:, :tokens]

    return jax.tree.map(first, factors, is_leaf=lambda factor: isinstance(factor, Pattern))


def scores(
    q: Float[Array, "t h k"], k: Float[Array, "s n k"], scale: float, softcap: float | None
) -> Float[Array, "h t s"]:
    r"""$z_{hts} = q_{th} \cdot k_{s}\,\text{scale}$, under the softcap $c \tanh(z / c)$ if there is one."""
    t, h, _ = q.shape
    s, n, _ = k.shape
    grouped = q.reshape(t, n, h // n, -1)
    # With this order of operands XLA writes the scores in the layout they are read in on a CPU; with the other one it
    # transposes each block.
    z = product("snk,tngk->ngts", k, grouped).reshape(h, t, s) * scale
    z = at_least_float32(z)
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def visible(positions: Int[Array, " t"], keys: Int[Array, " s"], first_visible: Int[Array, " t"]) -> Bool[Array, "t s"]:
    """Whether a query sees a key: those from `first_visible` to its own position."""
    return (keys[None, :] >= first_visible[:, None]) & (keys[None, :] <= positions[:, None])


def mix(probabilities: Float[Array, "h t s"], values: Float[Array, "s *b n k"]) -> Float[Array, "t *b h k"]:
    r"""$\sum_s p_{hts}\,v_s$; query head $h$ of $H$ reads key-value head $\lfloor h n / H \rfloor$."""
    h, t, s = probabilities.shape
    *batch, n, k = values.shape[1:]
    # The order of operands matters as in `scores`.
    mixed = product("s...nk,ngts->t...ngk", values, probabilities.reshape(n, h // n, t, s))
    return mixed.reshape(t, *batch, h, k)
