r"""Codes with a scale and a zero point for each group of a row: GPTQ, AWQ, and what compressed-tensors packs."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxlin.quantized.base import PackedMatrix, rounded
from jaxlin.quantized.codes import codes_of_rows, part_rows, rows_of_part, unpacked_codes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Affine(PackedMatrix):
    r"""$w_{ij} = (q_{ij} - z_{i g_j})\, s_{i g_j}$, rounded to the dtype of $s$.

    The difference is an integer that the dtype of $s$ holds, so that the product is rounded once, as in the kernels of
    these formats.

    Attributes:
        codes: $q$, of `bits` bits, ``[..., ceil(out bits / 8), in]``, see `jaxlin.quantized.codes`.
        zero: $z$, uint8, ``[..., out, groups]``.
        scale: $s$, ``[..., out, groups]``.
        group: $g$, the group of each column, int32, ``[..., in]``; None where groups are runs of one length.
        bits: how many bits a code has, 4 or 8.
    """

    codes: Any
    zero: Any
    scale: Any
    group: Any
    bits: int = field(metadata={"static": True})

    @classmethod
    def form(cls, shape: tuple[int, int], groups: int, bits: int, dtype: Any, *, ordered: bool) -> "Affine":
        """A matrix of `shape` without its values.

        Args:
            shape: ``(out, in)``.
            groups: how many groups a row has.
            bits: of a code.
            dtype: of the scales.
            ordered: whether groups are runs of one length.
        """
        leaf, (out, width) = jax.ShapeDtypeStruct, shape
        return cls(
            leaf((part_rows(out, bits), width), jnp.uint8),
            leaf((out, groups), jnp.uint8),
            leaf((out, groups), dtype),
            None if ordered else leaf((width,), jnp.int32),
            bits,
        )

    def is_finite(self) -> bool:
        """Whether scales are, and products of them with the largest difference of codes."""
        scale = np.asarray(self.scale)
        with np.errstate(over="ignore"):
            return bool(np.isfinite(scale * scale.dtype.type(2**self.bits)).all())

    def unpack(self) -> Array:
        """The values, in the dtype of the scales."""
        codes = jnp.asarray(self.codes)
        if self.group is not None and codes.ndim > 2:
            return jax.vmap(type(self).unpack)(self)
        scale = jnp.asarray(self.scale)
        return self._values(unpacked_codes((codes,), (self.bits,), scale.shape[-2]), jnp.asarray(self.zero), scale)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        codes = codes_of_rows((jnp.asarray(self.codes),), (self.bits,), index)
        return self._values(codes, jnp.asarray(self.zero)[index], jnp.asarray(self.scale)[index])

    def rows(self, start: int, stop: int) -> "Affine":
        """Some rows, packed."""
        codes = rows_of_part(self.codes, self.bits, start, stop)
        return dataclasses.replace(self, codes=codes, zero=self.zero[start:stop], scale=self.scale[start:stop])

    def _values(
        self, codes: Int[Array, "*b o i"], zero: UInt8[Array, "*b o n"], scale: Float[Array, "*b o n"]
    ) -> Array:
        if self.group is None:
            zero, scale = zero[..., None], scale[..., None]
            grouped = codes.reshape(*scale.shape[:-1], -1)
        else:
            group = jnp.asarray(self.group)
            zero, scale, grouped = zero[:, group], scale[:, group], codes
        # In float32 the product is exact: a difference of 9 bits, a scale of 11.
        values = (grouped - zero.astype(jnp.int32)).astype(jnp.float32) * scale.astype(jnp.float32)
        return rounded(values, scale.dtype).reshape(codes.shape)
