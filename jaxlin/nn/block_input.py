"""What enters a block: the residual stream, and what the layers of some models read besides it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.common.arrays import Leaf
from jaxlin.nn.kv_cache import KeysAndValues


class BlockInput(NamedTuple):
    """The input of a block, which a scan hands from one block to the next.

    Attributes:
        stream: the residual stream, ``[t, *b, d]``.
        shared: what earlier layers leave for later ones beside the stream, by its kind; empty in most models. By the
            kind of attention these are keys and values that layers read in place of their own, in a replay without
            keys; under another name other residual streams are the values (`jaxlin.nn.altup`).
        per_layer: the per-layer input, ``[t, p]``; between blocks those of all layers. None in most models.
    """

    stream: Leaf
    shared: Mapping[str, KeysAndValues] = {}
    per_layer: Any = None


class SharedValues:
    """The keys and values that blocks share, as one block sees them.

    Attributes:
        values: those that the next block gets.
        reads: those that this block has read.
    """

    def __init__(self, values: Mapping[str, KeysAndValues] | None = None) -> None:
        self.values, self.reads = dict(values or {}), dict[str, KeysAndValues]()

    def write(self, kind: str, own: KeysAndValues) -> None:
        """Let later blocks read the keys and values of this one."""
        self.values[kind] = own

    def read(self, kind: str) -> KeysAndValues:
        """The keys and values of an earlier block."""
        self.reads[kind] = self.values[kind]
        return self.reads[kind]


def shared_site(kind: str) -> str:
    """The site of the shared values of a kind of attention, ``[t, n, k]``, as a block gets them."""
    return f"shared {kind}"


def shared_sites(value_layers: Sequence[int], kinds: Sequence[str]) -> tuple[str, ...]:
    """The sites of all shared values, from the layer whose values each layer reads, and the kinds of the layers."""
    return tuple(sorted({shared_site(kinds[own]) for layer, own in enumerate(value_layers) if own != layer}))


def linear_zeros(x: Float[Array, "t *b d"], shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros that are a linear function of `x`: JAX transposes no function that adds a constant, even zero."""
    zero = (0 * x.reshape(-1)[:1]).astype(dtype)
    return jnp.broadcast_to(zero.reshape((1,) * len(shape)), shape)
