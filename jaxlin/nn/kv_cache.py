"""The cache of keys and values with which a text is continued."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from jaxlin.common.arrays import Leaf


class KeysAndValues(NamedTuple):
    """The keys and values of some tokens, of one layer or stacked over layers.

    Attributes:
        keys: after rotation, ``[s, n, k]``.
        values: ``[s, n, k]``.
    """

    keys: Leaf
    values: Leaf


class KVCache:
    """The keys and values of one layer: those of earlier tokens are read from it, those of new tokens are added.

    The arrays of earlier tokens are not written to. What is new stands in `new`, for the caller to store.

    Args:
        earlier: slot ``s`` is that of the token at position ``s``; None where the tokens at hand begin a text.
        start: the position of the first token at hand.
    """

    def __init__(self, earlier: KeysAndValues | None = None, start: Array | int = 0) -> None:
        self.earlier, self.start = earlier, start
        self.new = KeysAndValues(None, None)

    def extend_keys(self, keys: Float[Array, "t n k"]) -> Float[Array, "s n k"]:
        """The keys of all tokens that the new ones may attend to; the contents of later slots do not matter."""
        self.new = self.new._replace(keys=keys)
        return keys if self.earlier is None else self._extended(self.earlier.keys, keys)

    def extend_values(self, values: Float[Array, "t *b n k"]) -> Float[Array, "s *b n k"]:
        """The values of all tokens that the new ones may attend to; the contents of later slots do not matter."""
        self.new = self.new._replace(values=values)
        return values if self.earlier is None else self._extended(self.earlier.values, values)

    def _extended(self, earlier: Float[Array, "s n k"], new: Float[Array, "t n k"]) -> Float[Array, "s n k"]:
        return jax.lax.dynamic_update_slice_in_dim(earlier, new, self.start, axis=0)
