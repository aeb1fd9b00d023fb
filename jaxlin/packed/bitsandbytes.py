r"""The formats of bitsandbytes: NF4 and FP4 in blocks, and int8 by rows.

Source: Dettmers et al., "QLoRA", 2023 (4 bits, double quantisation); "LLM.int8()", 2022. The values are those of
``bitsandbytes.functional.dequantize_4bit`` and ``int8_vectorwise_dequant``, bit for bit.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlin.packed.base import Packed, rounded

NESTED_BLOCK = 256
"""Block scales that share one scale of their own, under double quantisation."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FourBit(Packed):
    r"""$w_{ij} = c[q_{ij}]\, a_{i,\lfloor j/B \rfloor}$: a table of 16 values and a scale for each block of a row.

    Attributes:
        codes: two indices a byte, the high half first, ``[..., out, in / 2]``.
        absmax: the scales, ``[..., out, in / B]``: float32, or indices into `Nested`.
        table: the 16 values, ``[..., 16]``.
        nested: how `absmax` is quantised itself; None if it is not.
        kind: the dtype that the reference rounds to.
    """

    codes: Any
    absmax: Any
    table: Any
    nested: "Nested | None"
    kind: str = field(metadata={"static": True})

    def unpack(self) -> Array:
        """The table's values times the scales, rounded to `kind`."""
        codes, scales = jnp.asarray(self.codes), jnp.asarray(self.absmax)
        if self.nested is not None:
            scales = self.nested.unpack(scales)
        # Shifted where they are: XLA makes slow work of an axis of two at the end.
        twice = jnp.repeat(codes, 2, axis=-1)
        high = jax.lax.broadcasted_iota(jnp.uint32, twice.shape, twice.ndim - 1) % 2 == 0
        halves = jnp.where(high, twice >> 4, twice & 15)
        values = _looked_up(jnp.asarray(self.table), halves).reshape(*scales.shape, -1)
        return rounded((values * scales[..., None]).reshape(*codes.shape[:-1], -1), self.kind)

    def rows(self, index: Any) -> Packed:
        """Some rows, packed."""
        nested = None if self.nested is None else dataclasses.replace(self.nested, row=self.nested.row[index])
        return dataclasses.replace(self, codes=self.codes[index], absmax=self.absmax[index], nested=nested)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nested:
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

    def unpack(self, codes: Array) -> Array:
        """The scales that `codes` ``[..., out, blocks a row]`` stand for."""
        within = jax.lax.broadcasted_iota(jnp.int32, codes.shape, codes.ndim - 1)
        block = jnp.asarray(self.row)[..., None] * codes.shape[-1] + within
        scale = _looked_up(jnp.asarray(self.absmax), block // NESTED_BLOCK)
        product = _looked_up(jnp.asarray(self.table), codes) * scale
        # The reference rounds the product before it adds, the compiler would contract the two into one rounding, even
        # through a barrier. It cannot see that no block has a negative index, so it has to make the bits.
        bits = jax.lax.bitcast_convert_type(product, jnp.int32) + (block >> 31)
        return jax.lax.bitcast_convert_type(bits, jnp.float32) + jnp.asarray(self.offset)[..., None, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8(Packed):
    r"""$w_{ij} = q_{ij}\, s_i / 127$.

    Attributes:
        codes: int8, ``[..., out, in]``.
        scale: the largest magnitude of each row, ``[..., out]``.
    """

    codes: Any
    scale: Any

    def unpack(self) -> Array:
        """Codes times scales, in float32."""
        scaled = jnp.asarray(self.codes).astype(jnp.float32) * jnp.asarray(self.scale)[..., None]
        return scaled * jnp.float32(7.874015718698502e-3)

    def rows(self, index: Any) -> Packed:
        """Some rows, packed."""
        return dataclasses.replace(self, codes=self.codes[index], scale=self.scale[index])


def _looked_up(table: Array, index: Array) -> Array:
    """``table[index]`` along the last axis of `table`, whose leading axes are those of `index`.

    No index is beyond the table: codes have 4 or 8 bits for 16 or 256 values, and blocks are counted.
    """
    flat = index.astype(jnp.int32).reshape(*table.shape[:-1], -1)
    return jnp.take_along_axis(table, flat, axis=-1, mode="promise_in_bounds").reshape(index.shape)
