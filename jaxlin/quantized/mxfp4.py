r"""MXFP4: floats of 4 bits, and for each 32 of a row a power of two.

A float has a sign, 2 bits of exponent and one of mantissa: its magnitude is 0, ½, 1, 1½, 2, 3, 4 or 6. The scale is a
byte $e$ that stands for $2^{e - 127}$. Source: "OCP Microscaling Formats (MX) Specification", version 1.0, 2023.

In a folder the experts of gpt-oss are in it: ``gate_up_proj_blocks``, uint8 ``[E, out, in / 32, 16]``, whose bytes have
two neighbouring values each, the first in the low half, and ``gate_up_proj_scales``, uint8 ``[E, out, in / 32]``; and
likewise ``down_proj``. In a GGUF file a block of 17 bytes has the scale, then the values: the low halves of all bytes
first.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.quantized.codes import (
    codes_of_rows,
    packed_codes,
    part_rows,
    rows_of_part,
    shifted_down,
    table_values,
    unpacked_codes,
)
from jaxlin.quantized.format import ModuleTensors, QuantizedFormat
from jaxlin.quantized.matrix import PackedMatrix

BITS = (4,)

BLOCK = 32
"""How many values of a row share a scale."""

BLOCK_BYTES = BLOCK // 2

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
"""Of each code; those with the highest bit are negative."""

LARGEST_SCALE = 252
"""The largest scale with which the largest magnitude is a float32."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MXFP4(PackedMatrix):
    r"""$w_{ij} = c[q_{ij}]\, 2^{e_{i,\lfloor j/32 \rfloor} - 127}$.

    Attributes:
        codes: $q$, of 4 bits, ``[..., ceil(out / 2), in]``, see `jaxlin.quantized.codes`.
        scale: $e$, uint8, ``[..., out, in / 32]``.
    """

    codes: Any
    scale: Any

    @classmethod
    def from_blocks(cls, blocks: UInt8[np.ndarray, "o n b"], scale: UInt8[np.ndarray, "o n"]) -> "MXFP4":
        """One matrix of a folder."""
        return cls._packed(blocks, scale, lambda raw: np.stack([raw & 15, raw >> 4], axis=-1))

    @classmethod
    def from_bytes(cls, raw: UInt8[np.ndarray, "o r"]) -> "MXFP4":
        """One matrix of a GGUF file."""
        blocks = raw.reshape(len(raw), -1, 1 + BLOCK_BYTES)
        halves = np.array([0, 4])[:, None]
        return cls._packed(
            blocks[..., 1:], blocks[..., 0].copy(), lambda raw: shifted_down(raw[..., None, :], halves, 4)
        )

    @classmethod
    def _packed(cls, blocks: Any, scale: Any, spread: Any) -> "MXFP4":
        width = scale.shape[1] * BLOCK
        raw = blocks.reshape(len(blocks), -1)
        (codes,) = packed_codes(
            raw, width, BITS, lambda rows: spread(rows.reshape(len(rows), -1, BLOCK_BYTES)).reshape(len(rows), width)
        )
        return cls(codes, scale)

    @classmethod
    def abstract(cls, shape: tuple[int, int]) -> "MXFP4":
        """A matrix of `shape` without its values."""
        array, (out, width) = jax.ShapeDtypeStruct, shape
        return cls(array((part_rows(out, *BITS), width), jnp.uint8), array((out, width // BLOCK), jnp.uint8))

    def is_finite(self) -> bool:
        """Whether every scale times the largest magnitude is a float32."""
        return bool((np.asarray(self.scale) <= LARGEST_SCALE).all())

    def unpack(self) -> Array:
        """The values in float32, exactly."""
        scale = jnp.asarray(self.scale)
        return self._values(unpacked_codes((jnp.asarray(self.codes),), BITS, scale.shape[-2]), scale)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        return self._values(codes_of_rows((jnp.asarray(self.codes),), BITS, index), jnp.asarray(self.scale)[index])

    def rows(self, index: Int[np.ndarray, " n"]) -> "MXFP4":
        """Some rows, packed."""
        return dataclasses.replace(self, codes=rows_of_part(self.codes, *BITS, index), scale=self.scale[index])

    def _values(self, codes: Int[Array, "*b o i"], scale: UInt8[Array, "*b o n"]) -> Float[Array, "*b o i"]:
        table = jnp.broadcast_to(np.concatenate([MAGNITUDES, -MAGNITUDES]), (*codes.shape[:-2], 16))
        # The exponent's bits; the power of 0 is subnormal, which XLA takes for zero wherever it multiplies.
        powers = jax.lax.bitcast_convert_type(scale.astype(jnp.int32) << 23, jnp.float32)
        grouped = table_values(table, codes).reshape(*scale.shape, BLOCK)
        return (grouped * powers[..., None]).reshape(codes.shape)


class MXFP4Experts(QuantizedFormat):
    """``mxfp4``: the experts of gpt-oss, and nothing else."""

    joint = "_"
    stem = "blocks"
    companions = ("scales",)

    def __init__(self, config: ConfigReader) -> None:
        self.take_skipped(config, "modules_to_not_convert")
        config.leave_out("dequantize")

    def quantizes(self, module: str) -> bool:
        """Whether `module` is one of the experts."""
        return ".experts." in module and super().quantizes(module)

    def weight_name(self, module: ModuleTensors) -> str:
        """The name of the blocks: without quantisation the tensor of the weight is transposed, and named otherwise."""
        return module.tensor(self.stem)

    def abstract_matrix(self, shape: tuple[int, int], dtype: str, module: ModuleTensors | None = None) -> MXFP4:
        """`MXFP4`."""
        return MXFP4.abstract(shape)

    def shape(self, module: ModuleTensors) -> tuple[int, ...]:
        """``(E, out, in)``."""
        shape, dtype = module.shape("blocks"), module.dtype("blocks")
        if len(shape) not in (3, 4) or shape[-1] != BLOCK_BYTES or dtype != "U8":
            expected = f"bytes of U8 and shape (experts, out, in / {BLOCK}, {BLOCK_BYTES})"
            raise module.error("blocks", expected, f"{dtype} of shape {shape}")
        return (*shape[:-2], shape[-2] * BLOCK)

    def read(self, module: ModuleTensors) -> MXFP4:
        """`MXFP4`, of a module without experts."""
        return self._matrix(module, None)

    def read_expert(self, module: ModuleTensors, expert: int) -> MXFP4:
        """`MXFP4`."""
        return self._matrix(module, expert)

    def _matrix(self, module: ModuleTensors, expert: int | None) -> MXFP4:
        *leading, width = self.shape(module)
        scale = module.companion("scales", ("U8",), (*leading, width // BLOCK), expert=expert)
        return MXFP4.from_blocks(module.read("blocks", expert), scale)
