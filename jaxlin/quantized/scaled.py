"""Numbers of 8 bits with a scale for each block: fine-grained FP8, and the 8-bit formats of compressed-tensors."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxlin.quantized.matrix import PackedMatrix, rounded

FLOAT8 = ("F8_E4M3", "F8_E5M2")
"""The 8-bit floats of weights, by the names of safetensors."""


def clipped_block(block: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """`block`, no larger than the matrix: each scale is repeated over its block before the rest is cut off."""
    return min(block[0], shape[0]), min(block[1], shape[1])


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
    def from_codes(cls, codes: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> "Scaled":
        """The matrix of `codes` in their own dtype."""
        return cls(codes.view(np.uint8), scale, block, codes.dtype.name)

    @classmethod
    def abstract(cls, shape: tuple[int, int], block: tuple[int, int], dtype: Any, kind: str) -> "Scaled":
        """A matrix of `shape` without its values, with codes of the dtype `kind` and scales of `dtype`."""
        array, grid = jax.ShapeDtypeStruct, tuple(-(-size // part) for size, part in zip(shape, block, strict=True))
        return cls(array(shape, jnp.uint8), array(grid, dtype), block, kind)

    def is_finite(self) -> bool:
        """Whether the codes and the scales are finite."""
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

    def rows(self, index: Int[np.ndarray, " n"]) -> "Scaled":
        """Some rows, packed; each has scales of its own, unless they are whole blocks."""
        rows, block = self._scales_of(index)
        return type(self)(self.codes[index], self.scale[rows], block, self.kind)

    def abstract_rows(self, index: Int[np.ndarray, " n"]) -> "Scaled":
        """The shapes of `rows`, of a matrix without its values."""
        rows, block = self._scales_of(index)
        codes, scale = (
            jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype)
            for count, array in ((len(index), self.codes), (len(rows), self.scale))
        )
        return type(self)(codes, scale, block, self.kind)

    def _scales_of(self, index: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " m"], tuple[int, int]]:
        """The rows of the scales of some rows, and the blocks of these."""
        high, wide = self.block
        first = index[::high]
        if not (first % high).any() and np.array_equal(index, (first[:, None] + np.arange(high)).ravel()[: len(index)]):
            return first // high, self.block
        return index // high, (1, wide)
