"""Tensors of 8 bits with scales: fine-grained FP8, and compressed-tensors with 8-bit floats or integers."""

from typing import Any

import ml_dtypes
import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.printable import quoted
from jaxlin.quantized import Scaled
from jaxlin.quantized.compressed import compressed_groups
from jaxlin.quantized.packing import Quantized

FLOAT8 = ("F8_E4M3", "F8_E5M2")


def _is_block(value: Any) -> bool:
    """Whether `value` is the size of a block of a matrix."""
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)


def within(block: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """`block`, no larger than the matrix: each scale is repeated over its block before the rest is cut off."""
    return min(block[0], shape[0]), min(block[1], shape[1])


def weight_block_size(said: ConfigReader) -> tuple[int, int] | None:
    """The size of a block of ``fp8``; None for one scale a matrix.

    Raises:
        ConfigError: no two integers of at least 1.
    """
    block = said.take("weight_block_size", list, None)
    if block is None:
        return None
    if not _is_block(block):
        raise said.error("weight_block_size", "two integers of at least 1", quoted(block))
    return block[0], block[1]


class FineGrained(Quantized):
    """``fp8``: 8-bit floats with one scale for each block of ``weight_block_size``, or one for the matrix."""

    suffixes = ("weight_scale_inv",)
    left_out = ("activation_scale", "input_scale")

    def read_config(self, said: ConfigReader) -> None:
        """The size of a block; how activations are quantised at run time is no matter of the weights."""
        self._block = weight_block_size(said)
        self.take_skipped(said, "modules_to_not_convert")
        said.leave_out("activation_scheme", "dequantize", "fmt", "scale_fmt")

    def is_packed_tensor(self, name: str) -> bool:
        """Weights of 8-bit floats are."""
        return self.folder.dtype(name) in FLOAT8

    def packed(self, module: str) -> Scaled:
        """`Scaled`, in float32."""
        out, width = self.matrix_shape(module)
        codes = self.folder.read(f"{module}.weight")
        high, wide = within(self._block or (out, width), (out, width))
        grid = (-(-out // high), -(-width // wide))
        shapes = (grid,) if self._block else (grid, (1,), ())
        scale = self.part(module, "weight_scale_inv", ("F32", "BF16", "F16", "F8_E8M0"), *shapes)
        return Scaled.of(codes, scale.astype(np.float32).reshape(grid), (high, wide))

    def planned(self, shape: tuple[int, int], dtype: str) -> Scaled:
        """`Scaled`, in float32."""
        return Scaled.form(shape, within(self._block or shape, shape), np.float32)


class CompressedTensors(Quantized):
    """``compressed-tensors`` with 8-bit floats or integers, symmetric: scales for the matrix, rows or blocks."""

    suffixes = ("weight_scale",)
    left_out = ("input_scale", "output_scale")

    def read_config(self, said: ConfigReader) -> None:
        """The format of the weights in every group."""
        self._block: tuple[int, int] | None = None
        for weights in compressed_groups(said):
            kind = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric", True))
            if kind not in ((8, "float", True), (8, "int", True)):
                raise said.error("config_groups", "symmetric weights of 8 bits, float or int", quoted(weights))
            if weights.get("strategy") not in ("tensor", "channel", "block"):
                found = quoted(weights.get("strategy"))
                raise said.error("config_groups", "a strategy tensor, channel or block", found)
            block = weights.get("block_structure")
            if weights["strategy"] == "block" and block is not None:
                if not _is_block(block):
                    raise said.error("config_groups", "a block_structure of two integers of at least 1", quoted(block))
                self._block = block[0], block[1]

    def is_packed_tensor(self, name: str) -> bool:
        """Weights of 8 bits are."""
        return self.folder.dtype(name) in (*FLOAT8, "I8")

    def packed(self, module: str) -> Scaled:
        """`Scaled`, in the dtype of its scales."""
        out, width = self.matrix_shape(module)
        codes = self.folder.read(f"{module}.weight")
        blocks = {(out, 1): (1, width), (out,): (1, width), (1, 1): (out, width), (1,): (out, width), (): (out, width)}
        if self._block:
            high, wide = block = within(self._block, (out, width))
            blocks = {(-(-out // high), -(-width // wide)): block}
        scale = self.part(module, "weight_scale", ("F32", "BF16", "F16"), *blocks)
        block = blocks[scale.shape]
        return Scaled.of(codes, scale.reshape(-(-out // block[0]), -(-width // block[1])), block)

    def planned(self, shape: tuple[int, int], dtype: str) -> Scaled:
        """`Scaled` with scales of bfloat16, one for a block or, as in most files, for a row."""
        return Scaled.form(shape, within(self._block or (1, shape[1]), shape), ml_dtypes.bfloat16)
