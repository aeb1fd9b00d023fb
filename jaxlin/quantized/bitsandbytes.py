r"""bitsandbytes: NF4 and FP4 in blocks of a row, and int8 by rows.

With 4 bits, the tensors of a module are ``weight``, whose bytes have two indices each; ``weight.absmax``, the scale of
each block; ``weight.quant_map``, the 16 values; and the JSON object ``weight.quant_state.bitsandbytes__nf4`` or
``__fp4``. With double quantisation the scales are indices too, into ``weight.nested_quant_map``, with scales
``weight.nested_absmax`` of their own. With 8 bits they are ``weight``, int8, and ``SCB``, the largest magnitude of each
row.

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

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.quantized.codes import (
    codes_of_rows,
    computed_once,
    packed_codes,
    part_rows,
    rows_of_part,
    table_values,
    unpacked_codes,
)
from jaxlin.quantized.format import ModuleTensors, QuantizedFormat
from jaxlin.quantized.matrix import PackedMatrix, rounded
from jaxlin.quantized.quant_state import NESTED_BLOCK, STATE, quant_state

BITS = (4,)


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
    def from_pairs(
        cls, pairs: UInt8[np.ndarray, "o c"], absmax: Any, table: Any, nested: "NestedScales | None", kind: str
    ) -> "FourBit":
        """One matrix of a file, in which a byte has two neighbouring indices, the first in its high half."""
        width = 2 * pairs.shape[1]
        (codes,) = packed_codes(
            pairs, width, BITS, lambda rows: np.stack([rows >> 4, rows & 15], axis=-1).reshape(-1, width)
        )
        return cls(codes, absmax, table, nested, kind)

    @classmethod
    def abstract(cls, shape: tuple[int, int], block: int, *, nested: bool, kind: str) -> "FourBit":
        """A matrix of `shape` without its values, with a scale for each `block` of a row."""
        array, (out, width) = jax.ShapeDtypeStruct, shape
        blocks = width // block
        scales = NestedScales(
            array((-(-out * blocks // NESTED_BLOCK),), jnp.float32),
            array((256,), jnp.float32),
            array((), jnp.float32),
            array((out,), jnp.int32),
        )
        return cls(
            array((part_rows(out, *BITS), width), jnp.uint8),
            array((out, blocks), jnp.uint8 if nested else jnp.float32),
            array((16,), jnp.float32),
            scales if nested else None,
            kind,
        )

    def unpack(self) -> Array:
        """The table's values times the scales, rounded to `kind`."""
        return self._values(unpacked_codes((jnp.asarray(self.codes),), BITS, self.absmax.shape[-2]), ...)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        return self._values(codes_of_rows((jnp.asarray(self.codes),), BITS, index), index)

    def rows(self, index: Int[np.ndarray, " n"]) -> "FourBit":
        """Some rows, packed."""
        codes = rows_of_part(self.codes, *BITS, index)
        nested = self.nested and dataclasses.replace(self.nested, row=self.nested.row[index])
        return dataclasses.replace(self, codes=codes, absmax=self.absmax[index], nested=nested)

    def _values(self, codes: Int[Array, "*b o i"], rows: Any) -> Array:
        """The values of some rows from their `codes`; `rows` is the index of their scales."""
        scales = jnp.asarray(self.absmax)[rows]
        if self.nested is not None:
            scales = self.nested.unpack(scales, jnp.asarray(self.nested.row)[rows])
        values = table_values(jnp.asarray(self.table), codes).reshape(*scales.shape, -1)
        return rounded((values * scales[..., None]).reshape(codes.shape), self.kind)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NestedScales:
    r"""Scales quantised to 8 bits: $a_b = c[q_b]\, s_{\lfloor b/256 \rfloor} + \bar a$.

    Attributes:
        absmax: $s$, ``[..., ceil(blocks / 256)]``.
        table: $c$, ``[..., 256]``.
        offset: $\bar a$, ``[...]``.
        row: the index of each row in the full matrix, ``[..., out]``: blocks are counted through all rows.
    """

    absmax: Any
    table: Any
    offset: Any
    row: Any

    def unpack(self, codes: UInt8[Array, "*b o n"], row: Int[Array, "*b o"]) -> Float[Array, "*b o n"]:
        """The scales of the `n` blocks of some rows, from their `codes`."""
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
    def abstract(cls, shape: tuple[int, int]) -> "Int8":
        """A matrix of `shape` without its values."""
        return cls(jax.ShapeDtypeStruct(shape, jnp.int8), jax.ShapeDtypeStruct(shape[:1], jnp.float32))

    def unpack(self) -> Array:
        """Codes times scales, in float32."""
        scaled = jnp.asarray(self.codes).astype(jnp.float32) * jnp.asarray(self.scale)[..., None]
        return scaled * jnp.float32(7.874015718698502e-3)  # 1 / 127, as bitsandbytes rounds it

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        return type(self)(jnp.asarray(self.codes)[index], jnp.asarray(self.scale)[index]).unpack()

    def rows(self, index: Int[np.ndarray, " n"]) -> "Int8":
        """Some rows, packed."""
        return type(self)(self.codes[index], self.scale[index])


def _looked_up(table: Array, index: Array) -> Array:
    """``table[index]`` along the last axis of `table`, whose leading axes are those of `index`.

    No index is beyond the table: codes have 4 or 8 bits for 16 or 256 values, and blocks are counted.
    """
    flat = index.astype(jnp.int32).reshape(*table.shape[:-1], -1)
    return jnp.take_along_axis(table, flat, axis=-1, mode="promise_in_bounds").reshape(index.shape)


class BitsAndBytes(QuantizedFormat):
    """bitsandbytes: 4 bits with or without double quantisation, or 8 bits."""

    companions = (
        *("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"{STATE}nf4", f"{STATE}fp4"),
        *("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
        *("SCB", "weight_format"),
    )

    def __init__(self, config: ConfigReader) -> None:
        self._four_bit = config.take("load_in_4bit", bool, config.take("_load_in_4bit", bool, False))
        eight_bit = config.take("load_in_8bit", bool, config.take("_load_in_8bit", bool, False))
        self._nested = config.take("bnb_4bit_use_double_quant", bool, False)
        for key in ("llm_int8_skip_modules", "modules_to_not_convert"):
            self.take_skipped(config, key)
        # The rest says how to quantise or to compute; how a tensor is stored, its own quant state says.
        config.leave_out("_load_in_4bit", "_load_in_8bit", "llm_int8_enable_fp32_cpu_offload")
        config.leave_out("llm_int8_has_fp16_weight", "llm_int8_threshold", "bnb_4bit_compute_dtype")
        config.leave_out("bnb_4bit_quant_type", "bnb_4bit_quant_storage")
        if self._four_bit == eight_bit:
            raise config.error("load_in_4bit", "either load_in_4bit or load_in_8bit", f"both {eight_bit}")

    def is_packed(self, module: ModuleTensors) -> bool:
        """Whether the weight has bytes: the values of one that is not quantised are floats."""
        return module.dtype("weight") == ("U8" if self._four_bit else "I8")

    def abstract_matrix(
        self, shape: tuple[int, int], dtype: str, module: ModuleTensors | None = None
    ) -> FourBit | Int8:
        """`FourBit`, by default in blocks of 64 as bitsandbytes writes them, or `Int8`."""
        if not self._four_bit:
            return Int8.abstract(shape)
        if module is None:
            return FourBit.abstract(shape, 64, nested=self._nested, kind=dtype)
        state = quant_state(module)
        return FourBit.abstract(shape, state["blocksize"], nested="nested_blocksize" in state, kind=state["dtype"])

    def abstract_rows(
        self,
        tensor: str,
        shape: tuple[int, int],
        index: Int[np.ndarray, " n"],
        dtype: str,
        module: ModuleTensors | None = None,
    ) -> FourBit | Int8:
        """As in `QuantizedFormat`; rows of 4 bits keep the scales of the scales of all rows, see `FourBit.rows`."""
        rows, matrix = (self.abstract_matrix((out, shape[1]), dtype, module) for out in (len(index), shape[0]))
        if isinstance(rows, Int8) or isinstance(matrix, Int8) or not rows.nested or not matrix.nested:
            return rows
        return dataclasses.replace(rows, nested=dataclasses.replace(rows.nested, absmax=matrix.nested.absmax))

    def shape(self, module: ModuleTensors) -> tuple[int, ...]:
        """The shape of the weight; with 4 bits, its quant state has it."""
        return tuple(quant_state(module)["shape"]) if self._four_bit else module.shape("weight")

    def read(self, module: ModuleTensors) -> FourBit | Int8:
        """`FourBit` or `Int8`."""
        return _read_four_bit(module) if self._four_bit else _read_int8(module)


def _read_int8(module: ModuleTensors) -> Int8:
    out, _ = module.matrix_shape()
    order = np.asarray(module.companion("weight_format", ("U8",), (), (1,)))
    if order.any():
        raise module.error("weight_format", "0, which is by rows", f"{order}")
    return Int8(module.read("weight"), module.companion("SCB", ("F32",), (out,)))


def _read_four_bit(module: ModuleTensors) -> FourBit:
    state = quant_state(module)
    (out, width), block = state["shape"], state["blocksize"]
    blocks, nested = out * (width // block), None
    pairs = module.companion("weight", ("U8",), (out * width // 2, 1), (out * width // 2,)).reshape(out, -1)
    table = module.companion("weight.quant_map", ("F32",), (16,))
    absmax = module.companion("weight.absmax", ("U8" if "nested_blocksize" in state else "F32",), (blocks,))
    if "nested_blocksize" in state:
        nested = NestedScales(
            module.companion("weight.nested_absmax", ("F32",), (-(-blocks // NESTED_BLOCK),)),
            module.companion("weight.nested_quant_map", ("F32",), (256,)),
            np.float32(state["nested_offset"]),
            np.arange(out, dtype=np.int32),
        )
    return FourBit.from_pairs(pairs, absmax.reshape(out, -1), table, nested, state["dtype"])
