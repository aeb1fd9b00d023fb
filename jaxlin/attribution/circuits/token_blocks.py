"""Blocks of tokens: a sum over the tokens of a prompt, some of them at a time, in bounded memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

BLOCK_BYTES = 2**27
"""The most memory for what is expanded at once, in bytes."""


@dataclass(frozen=True)
class TokenBlocks:
    """The tokens of a prompt in blocks of one size; the last one is padded.

    Attributes:
        tokens: the number of tokens.
        size: the tokens of a block.
        count: the number of blocks.
    """

    tokens: int
    size: int
    count: int

    @classmethod
    def of(cls, tokens: int, token_bytes: int) -> "TokenBlocks":
        """The blocks of a prompt, for each token of which this much memory is used."""
        count = -(-tokens // max(1, min(tokens, BLOCK_BYTES // token_bytes)))
        return cls(tokens, -(-tokens // count), count)

    def padded(self, array: Array, axis: int, value: int = 0) -> Array:
        """`array` with `value` after its last token."""
        widths = [(0, self.count * self.size - self.tokens if i == axis else 0) for i in range(array.ndim)]
        return jnp.pad(array, widths, constant_values=value)

    def block(self, tree: Any, start: Array, axis: int) -> Any:
        """The values of the tokens of one block in a pytree of padded arrays."""
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, self.size, axis), tree)

    def total(self, add: Callable[[Any, Array], Any], zeros: Any) -> Any:
        """The sum over all blocks: `add` takes the sum so far and the first token of a block."""
        starts = self.size * jnp.arange(self.count)
        return jax.lax.scan(lambda total, start: (add(total, start), None), zeros, starts)[0]
