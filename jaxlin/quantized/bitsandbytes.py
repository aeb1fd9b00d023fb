r"""The formats of bitsandbytes: NF4 and FP4 in blocks, and int8 by rows.

Source: Dettmers et al., "QLoRA", 2023 (4 bits, double quantisation); "LLM.int8()", 2022. The values are those of
``bitsandbytes.functional.dequantize_4bit`` and ``int8_vectorwise_dequant``, bit for bit.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxlin.quantized.base import PackedMatrix, rounded
from jaxlin.quantized.codes import (
    chosen,
    codes_of_rows,
    computed_once,
    packed_codes,
    part_rows,
    rows_of_part,
    unpacked_codes,
)

BITS = (4,)

NESTED_BLOCK = 256
"""Block scales that share one scale of their own, under double quantisation."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FourBit(PackedMatrix):
    r"""$w_{ij} = c[q_{ij}]\, a_{i,\lfloor j/B \rfloor}$: a table of 16 values and a scale for each block of a row.

    Attributes:
        codes: the indices, of 4 bits, ``[..., ceil(out / 2), in]``, see `jaxlin.quantized.codes`.
        absmax: the scales, ``[..., out, in / B]``: float32, or indices into `NestedScales`.
        table: the 16 values, ``[..., 16]``.
        nested: how `absmax` is quantised itself; None if it is not.
        kind: the dtype that the reference rounds to.
    """

    codes: Any
    absmax: Any
    table: Any
    nested: "NestedScales | None"
    kind: str = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        pairs: UInt8[np.ndarray, "o c"],
        absmax: np.ndarray,
        table: np.ndarray,
        nested: "NestedScales | None",
        kind: str,
    ) -> "FourBit":
        """One matrix of a file, which keeps two indices side by side in a byte, the first in its high half."""
        width = 2 * pairs.shape[1]
        (codes,) = packed_codes(
            pairs, width, BITS, lambda rows: np.stack([rows >> 4, rows & 15], axis=-1).reshape(-1, width)
        )
        return cls(codes, absmax, table, nested, kind)

    @classmethod
    def form(cls, shape: tuple[int, int], block: int, *, nested: bool, kind: str) -> "FourBit":
        """A matrix of `shape` without its values, with a scale for each `block` of a row."""
        leaf, (out, width) = jax.ShapeDtypeStruct, shape
        blocks = width // block
        scales = NestedScales(
            leaf((-(-out * blocks // NESTED_BLOCK),), jnp.float32),
            leaf((256,), jnp.float32),
            leaf((), jnp.float32),
            leaf((out,), jnp.int32),
        )
        return cls(
            leaf((part_rows(out, *BITS), width), jnp.uint8),
            leaf((out, blocks), jnp.uint8 if nested else jnp.float32),
            leaf((16,), jnp.float32),
            scales if nested else None,
            kind,
        )

    def unpack(self) -> Array:
        """The table's values times the scales, rounded to `kind`."""
        scales = jnp.asarray(self.absmax)
        if self.nested is not None:
            scales = self.nested.unpack(scales, jnp.asarray(self.nested.row))
        return self._values(unpacked_codes((jnp.asarray(self.codes),), BITS, scales.shape[-2]), scales)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        scales = jnp.asarray(self.absmax)[index]
        if self.nested is not None:
            scales = self.nested.unpack(scales, jnp.asarray(self.nested.row)[index])
        return self._values(codes_of_rows((jnp.asarray(self.codes),), BITS, index), scales)

    def rows(self, start: int, stop: int) -> "FourBit":
        """Some rows, packed."""
        codes = rows_of_part(self.codes, *BITS, start, stop)
        nested = self.nested and dataclasses.replace(self.nested, row=self.nested.row[start:stop])
        return dataclasses.replace(self, codes=codes, absmax=self.absmax[start:stop], nested=nested)

    def _values(self, codes: Int[Array, "*b o i"], scales: Float[Array, "*b o n"]) -> Array:
        values = chosen(jnp.asarray(self.table), codes).reshape(*scales.shape, -1)
        return rounded((values * scales[..., None]).reshape(codes.shape), self.kind)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NestedScales:
    r"""Scales quantised to 8 bits: $a_b = c[q_b]\, s_{\lfloor b/256 \rfloor} + \bar a$.

    Attributes:
        absmax: $s$, ``[..., ceil(blocks / 256)]``.
        table: $c$, ``[..., 256]``.
        offset: $\bar a$, ``[...]``.
        row: which row of the whole matrix each row is, ``[..., out]``: blocks are counted through all of it.
    """

    absmax: Any
    table: Any
    offset: Any
    row: Any

    def unpack(self, codes: UInt8[Array, "*b o n"], row: Int[Array, "*b o"]) -> Float[Array, "*b o n"]:
        """The scales that the `codes` of some rows, in each of which are `n` blocks, stand for."""
        within = jax.lax.broadcasted_iota(jnp.int32, codes.shape, codes.ndim - 1)
        block = row[..., None] * codes.shape[-1] + within
        scale = _looked_up(jnp.asarray(self.absmax), block // NESTED_BLOCK)
        product = _looked_up(jnp.asarray(self.table), codes) * scale
        # The reference rounds the product before it adds, the compiler would contract the two into one rounding, even
        # through a barrier. It cannot see that no block has a negative index, so it has to make the bits.
        bits = jax.lax.bitcast_convert_type(product, jnp.int32) + (block >> 31)
        scales = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return computed_once(scales + jnp.asarray(self.offset)[..., None, None])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8(PackedMatrix):
    r"""$w_{ij} = q_{ij}\, s_i / 127$.

    Attributes:
        codes: int8, ``[..., out, in]``.
        scale: the largest magnitude of each row, ``[..., out]``.
    """

    codes: Any
    scale: Any

    @classmethod
    def form(cls, shape: tuple[int, int]) -> "Int8":
        """A matrix of `shape` without its values."""
        return cls(jax.ShapeDtypeStruct(shape, jnp.int8), jax.ShapeDtypeStruct(shape[:1], jnp.float32))

    def unpack(self) -> Array:
        """Codes times scales, in float32."""
        scaled = jnp.asarray(self.codes).astype(jnp.float32) * jnp.asarray(self.scale)[..., None]
        return scaled * jnp.float32(7.874015718698502e-3)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        return type(self)(jnp.asarray(self.codes)[index], jnp.asarray(self.scale)[index]).unpack()

    def rows(self, start: int, stop: int) -> "Int8":
        """Some rows, packed."""
        return type(self)(self.codes[start:stop], self.scale[start:stop])


def _looked_up(table: Array, index: Array) -> Array:
    """``table[index]`` along the last axis of `table`, whose leading axes are those of `index`.

    No index is beyond the table: codes have 4 or 8 bits for 16 or 256 values, and blocks are counted.
    """
    flat = index.astype(jnp.int32).reshape(*table.shape[:-1], -1)
    return jnp.take_along_axis(table, flat, axis=-1, mode="promise_in_bounds").reshape(index.shape)
