"""8-bit floats with scales: fine-grained FP8, and the FP8 of compressed-tensors."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Int

from jaxlin.quantized.base import PackedMatrix, rounded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scaled(PackedMatrix):
    r"""$w_{ij} = q_{ij}\, s_{\lfloor i/B_o \rfloor \lfloor j/B_i \rfloor}$.

    Attributes:
        codes: the bits of $q$, uint8, ``[..., out, in]``: XLA on a CPU would widen stacked floats of 8 bits before the
            loop over layers.
        scale: ``[..., ceil(out / B_o), ceil(in / B_i)]``; one for a block, a row or the whole matrix.
        block: $(B_o, B_i)$.
        kind: the dtype of $q$, of one byte.
    """

    codes: Any
    scale: Any
    block: tuple[int, int] = field(metadata={"static": True})
    kind: str = field(metadata={"static": True})

    @classmethod
    def of(cls, codes: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> "Scaled":
        """The matrix of `codes` in their own dtype."""
        return cls(codes.view(np.uint8), scale, block, codes.dtype.name)

    @classmethod
    def form(cls, shape: tuple[int, int], block: tuple[int, int], dtype: Any) -> "Scaled":
        """A matrix of `shape` without its values, of 8-bit floats of the usual kind with scales of `dtype`."""
        grid = tuple(-(-size // part) for size, part in zip(shape, block, strict=True))
        leaf = jax.ShapeDtypeStruct
        return cls(leaf(shape, jnp.uint8), leaf(grid, dtype), block, "float8_e4m3fn")

    def is_finite(self) -> bool:
        """Whether codes and scales are."""
        codes = np.asarray(self.codes).view(jnp.dtype(self.kind))
        return bool(np.isfinite(codes).all() and np.isfinite(self.scale).all())

    def unpack(self) -> Array:
        """Codes times scales, in the dtype of the scales."""
        codes = jax.lax.bitcast_convert_type(jnp.asarray(self.codes), jnp.dtype(self.kind))
        scale = jnp.asarray(self.scale)
        out, width = codes.shape[-2:]
        spread = jnp.repeat(scale, self.block[0], axis=-2)[..., :out, :]
        spread = jnp.repeat(spread, self.block[1], axis=-1)[..., :width]
        # In float32 the product is exact: it is rounded once, as the product of two narrow numbers would be.
        return rounded(codes.astype(jnp.float32) * spread.astype(jnp.float32), scale.dtype)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        codes, scale = jnp.asarray(self.codes)[index], jnp.asarray(self.scale)[index // self.block[0]]
        return type(self)(codes, scale, (1, self.block[1]), self.kind).unpack()

    def rows(self, start: int, stop: int) -> "Scaled":
        """Some rows, packed; each with scales of its own."""
        scale = np.repeat(self.scale, self.block[0], axis=-2)[start:stop]
        return type(self)(self.codes[start:stop], scale, (1, self.block[1]), self.kind)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BFloat16(PackedMatrix):
    """bfloat16 kept as its bits.

    XLA on a CPU converts a stacked bfloat16 array to float32 before the loop over layers, all layers at once (jax
    0.10); bits are widened in the body.

    Attributes:
        bits: uint16, ``[..., out, in]``.
    """

    bits: Any

    def is_finite(self) -> bool:
        """Whether no exponent is all ones."""
        return bool(np.isfinite(np.asarray(self.bits).view(ml_dtypes.bfloat16)).all())

    def unpack(self) -> Array:
        """The values in float32, exactly."""
        return jax.lax.bitcast_convert_type(jnp.asarray(self.bits).astype(jnp.uint32) << 16, jnp.float32)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        return type(self)(jnp.asarray(self.bits)[index]).unpack()
