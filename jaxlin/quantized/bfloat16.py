"""Matrices of bfloat16, stored as their bits."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Int

from jaxlin.quantized.matrix import PackedMatrix


def abstract_array(shape: tuple[int, ...], dtype: Any) -> "jax.ShapeDtypeStruct | BFloat16":
    """An unquantised array without its values: a matrix of bfloat16 is stored as its bits."""
    if len(shape) == 2 and jnp.dtype(dtype) == jnp.bfloat16:
        return BFloat16(jax.ShapeDtypeStruct(shape, np.uint16))
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BFloat16(PackedMatrix):
    """A matrix of bfloat16, stored as its bits.

    XLA on a CPU converts a stacked bfloat16 array to float32 before the loop over layers, all layers at once (jax
    0.10); bits are widened in the body.

    Attributes:
        bits: uint16, ``[..., out, in]``.
    """

    bits: Any

    def is_finite(self) -> bool:
        """Whether every value is finite."""
        return bool(np.isfinite(np.asarray(self.bits).view(ml_dtypes.bfloat16)).all())

    def unpack(self) -> Array:
        """The values in float32, exactly."""
        return jax.lax.bitcast_convert_type(jnp.asarray(self.bits).astype(jnp.uint32) << 16, jnp.float32)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        return type(self)(jnp.asarray(self.bits)[index]).unpack()
