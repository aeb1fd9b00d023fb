"""Fingerprints of models: a hash of the configuration and of every bit of every parameter."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from jaxlin.nn.decoder import Decoder

MULTIPLIER = 2_654_435_761
"""Odd, and far from every power of two: $2^{32}$ over the golden ratio. Source: Knuth, The Art of Computer Programming,
volume 3, section 6.4."""


def fingerprint(model: Decoder) -> str:
    """A hash that differs if one bit of a parameter or one entry of the configuration differs.

    It is computed with integers, so that every device gives the same.
    """
    digest = hashlib.sha256(repr((type(model).__name__, dataclasses.asdict(model.config))).encode())
    leaves = jax.tree.leaves(model)
    digest.update(repr([(array.shape, str(array.dtype)) for array in leaves]).encode())
    digest.update(np.asarray(_sums(leaves)).tobytes())
    return digest.hexdigest()


@jax.jit
def _sums(leaves: list[Array]) -> UInt32[Array, " n"]:
    r"""$\sum_i b_i m_i \bmod 2^{32}$ over the words $b_i$ of each array, with another odd $m_i$ at each index $i$."""
    return jnp.stack([_sum(array) for array in leaves])


def _sum(array: Array) -> UInt32[Array, ""]:
    size = array.dtype.itemsize
    if array.dtype == jnp.bool_:
        bits = array.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(array, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
    bits = bits.reshape(bits.shape or (1,))
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, stride in enumerate(np.cumprod((1, *bits.shape[:0:-1]), dtype=np.uint64)[::-1]):
        steps = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + steps * jnp.uint32(int(stride) % 2**32)
    return jnp.sum(bits.astype(jnp.uint32) * (place * jnp.uint32(MULTIPLIER) * 2 + 1), dtype=jnp.uint32)
