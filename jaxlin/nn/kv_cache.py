"""The cache with which a text is continued: keys and values, or the state of a layer that has one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlin.common.arrays import Leaf


class KeysAndValues(NamedTuple):
    """The keys and values of some tokens, of one layer or stacked over layers.

    Both are None of a layer that reads those of another.

    Attributes:
        keys: after rotation, ``[s, n, k]``.
        values: ``[s, n, k]``.
    """

    keys: Leaf
    values: Leaf

    def with_room(self, slots: int) -> "KeysAndValues":
        """These, stacked over layers, with room for as many tokens as `slots` says."""

        def padded(a: Array) -> Array:
            return jnp.pad(a, ((0, 0), (0, slots - a.shape[1]), (0, 0), (0, 0)))

        return jax.tree.map(padded, self)

    def followed_by(self, new: "KeysAndValues", start: Array) -> "KeysAndValues":
        """These, stacked over layers, with those of new tokens from position `start` on."""

        def written(a: Array, b: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(a, b, start, axis=1)

        return jax.tree.map(written, self, new)


class RecurrentState(NamedTuple):
    """What some tokens leave to later ones in a layer with a state, whatever their number; or stacked over layers.

    Attributes:
        state: the state after them, ``[h, i, v]``.
        inputs: the last inputs of each convolution, by its name, ``[count, c]``.
    """

    state: Leaf
    inputs: dict[str, Leaf]

    def with_room(self, slots: int) -> "RecurrentState":
        """The same: a state takes no more room for a longer text."""
        return self

    def followed_by(self, new: "RecurrentState", start: Array) -> "RecurrentState":
        """The state that the new tokens leave."""
        return new


LayerCache = KeysAndValues | RecurrentState
"""What a layer caches."""


class KVCache:
    """The cache of one layer: what earlier tokens have left is read from it, what new tokens leave is added.

    The arrays of earlier tokens are not written to. What is new stands in `new`, for the caller to store, and what the
    new tokens may attend to in `extended`.

    Args:
        earlier: slot ``s`` is that of the token at position ``s``; None where the tokens at hand begin a text.
        start: the position of the first token at hand.
        stop: the position after the last token of the text; those from there on are padding, which must not change a
            state. None where nothing is cached, so that no state is computed.
    """

    def __init__(
        self, earlier: LayerCache | None = None, start: Array | int = 0, stop: Array | int | None = None
    ) -> None:
        self.earlier: Any = earlier
        self.start, self.stop = start, stop
        self.new: Any = KeysAndValues(None, None)
        self.extended = KeysAndValues(None, None)
        self._inputs: dict[str, Array] = {}

    def extend_keys(self, keys: Float[Array, "t n k"]) -> Float[Array, "s n k"]:
        """The keys of all tokens that the new ones may attend to; the contents of later slots do not matter."""
        self.new = self.new._replace(keys=keys)
        keys = keys if self.earlier is None else self._extend(self.earlier.keys, keys)
        self.extended = self.extended._replace(keys=keys)
        return keys

    def extend_values(self, values: Float[Array, "t *b n k"]) -> Float[Array, "s *b n k"]:
        """The values of all tokens that the new ones may attend to; the contents of later slots do not matter."""
        self.new = self.new._replace(values=values)
        values = values if self.earlier is None else self._extend(self.earlier.values, values)
        self.extended = self.extended._replace(values=values)
        return values

    def extend_inputs(self, name: str, inputs: Float[Array, "t *b c"], count: int) -> Float[Array, "s *b c"]:
        """The `inputs` of the convolution `name`, after the last `count` of earlier tokens, zeros before a text."""
        before = jnp.zeros((count, *inputs.shape[1:]), inputs.dtype)
        extended = jnp.concatenate([before if self.earlier is None else self.earlier.inputs[name], inputs])
        if self.stop is not None:
            last = jax.lax.dynamic_slice_in_dim(extended, self.stop - self.start, count)
            self._inputs[name] = last
        return extended

    def is_text(self, positions: Int[Array, " t"]) -> Bool[Array, " t"]:
        """Whether each token is one of the text, and no padding."""
        return jnp.ones(positions.shape, bool) if self.stop is None else positions < self.stop

    def update_state(
        self, update: Callable[[Array], tuple[Array, Array]], before: Float[Array, "h i v"]
    ) -> Float[Array, "t h v"]:
        """The outputs of `update`, which takes the state of the earlier tokens and gives the next one, to store.

        Args:
            update: gives the outputs of the new tokens, and the state after them.
            before: the state before a text.
        """
        outputs, state = update(before if self.earlier is None else self.earlier.state)
        self.new = RecurrentState(state, self._inputs)
        return outputs

    def _extend(self, earlier: Float[Array, "s n k"], new: Float[Array, "t n k"]) -> Float[Array, "s n k"]:
        return jax.lax.dynamic_update_slice_in_dim(earlier, new, self.start, axis=0)


def map_caches(function: Callable[..., Any], *caches: Any) -> Any:
    """`function` of the cache of each layer, in pytrees of them."""
    return jax.tree.map(function, *caches, is_leaf=lambda node: isinstance(node, LayerCache))
