"""compressed-tensors, as llm-compressor writes it: packed integers, or 8-bit numbers with scales.

In ``pack-quantized`` the tensors of a module are ``weight_packed``, int32 ``[out, in bits / 32]``, whose words have the
codes of neighbouring columns, the first in the lowest bits; ``weight_scale``, ``[out, groups]``; ``weight_shape``; and,
where integers are not symmetric, ``weight_zero_point``, int32 ``[out bits / 32, groups]``, packed along the rows. Where
columns are reordered, ``weight_g_idx``, int32 ``[in]``, is the group of each. Integers are stored as their difference
from the least. In the other formats ``weight`` has floats or integers of 8 bits, and ``weight_scale`` a scale for the
matrix, for each row or for each block.

The values are those of ``compressed_tensors``' ``dequantize``: ``(code - zero) * scale`` in the dtype of the scales.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Int, Int32

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.safetensors import DTYPES
from jaxlin.common.printable import quoted
from jaxlin.quantized.affine import (
    MAX_SIDE,
    SCALES,
    WORD_BITS,
    Affine,
    codes_in_words,
    group_count,
    group_of_columns,
)
from jaxlin.quantized.codes import packed_codes
from jaxlin.quantized.format import ModuleTensors, QuantizedFormat, is_pair_of_sizes
from jaxlin.quantized.scaled import FLOAT8, Scaled, clipped_block


def compressed_tensors(config: ConfigReader) -> QuantizedFormat:
    """The format that the key ``format`` names."""
    return (PackQuantized if config.peek("format") == "pack-quantized" else EightBit)(config)


class PackQuantized(QuantizedFormat):
    """``pack-quantized``, symmetric or not, with a scale for each row or for each group of it."""

    stem = "weight_packed"
    companions = ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
    unused = ("input_scale", "output_scale", "input_zero_point", "output_zero_point")

    def __init__(self, config: ConfigReader) -> None:
        kinds = set()
        for weights in weight_groups(config):
            bits, symmetric = weights.get("num_bits"), weights.get("symmetric", True)
            if weights.get("type", "int") != "int" or type(bits) is not int or bits not in (4, 8):
                raise config.error("config_groups", "integers of 4 or 8 bits", quoted(weights))
            if weights.get("strategy") not in ("group", "channel") or type(symmetric) is not bool:
                raise config.error("config_groups", "a strategy group or channel, symmetric or not", quoted(weights))
            size = weights.get("group_size") if weights["strategy"] == "group" else -1
            if type(size) is not int or not (size == -1 or 0 < size <= MAX_SIDE):
                raise config.error("config_groups", "a group_size of at least 1", quoted(weights))
            reordered = weights.get("actorder") not in (None, False, "weight", "static")
            kinds.add((bits, size, symmetric, reordered))
        if len(kinds) != 1:
            raise config.error("config_groups", "weights of one kind in all groups", f"{len(kinds)} kinds")
        ((self._bits, self._group_size, self._symmetric, self._reordered),) = kinds

    def abstract_matrix(self, shape: tuple[int, int], dtype: str, module: ModuleTensors | None = None) -> Affine:
        """`Affine`; scales are in the dtype of the model in most files."""
        kind, ordered = np.dtype(dtype), not self._reordered
        if module is not None:
            kind = module.companion_dtype("weight_scale", SCALES)
            ordered = self._group(module, shape[1]) is None
        return Affine.abstract(shape, self._group_size, self._bits, kind, ordered=ordered)

    def shape(self, module: ModuleTensors) -> tuple[int, int]:
        """As the tensor `weight_shape` says."""
        out, width = module.companion("weight_shape", ("I64", "I32"), (2,)).tolist()
        words, dtype = module.shape("weight_packed"), module.dtype("weight_packed")
        in_bounds = min(out, width) >= 1 and max(out, width) <= MAX_SIDE
        if not in_bounds or words != (out, -(-width * self._bits // WORD_BITS)):
            expected = f"words of {self._bits} bits a value of shape {quoted([out, width])}, as weight_shape says"
            raise module.error("weight_packed", expected, f"{dtype} of shape {words}")
        return out, width

    def read(self, module: ModuleTensors) -> Affine:
        """`Affine`."""
        out, width = self.shape(module)
        groups = group_count(module, width, self._group_size)
        words = module.companion("weight_packed", ("I32",), (out, -(-width * self._bits // WORD_BITS)))
        scale = module.companion("weight_scale", SCALES, (out, groups))
        (codes,) = packed_codes(
            words.view(np.uint8),
            width,
            (self._bits,),
            lambda raw: np.ascontiguousarray(codes_in_words(raw.view(np.int32), self._bits)[:, :width]),
        )
        zero = np.full((out, groups), 2 ** (self._bits - 1), np.uint8)
        if not self._symmetric:
            zeros = module.companion("weight_zero_point", ("I32",), (-(-out * self._bits // WORD_BITS), groups))
            zero = np.ascontiguousarray(codes_in_words(zeros.T, self._bits)[:, :out].T)
        return Affine(codes, zero, scale, self._group(module, width), self._bits)

    def _group(self, module: ModuleTensors, width: int) -> Int32[np.ndarray, " i"] | None:
        groups = group_count(module, width, self._group_size)
        return group_of_columns(module, "weight_g_idx", width, groups, required=self._reordered)


class EightBit(QuantizedFormat):
    """Floats or symmetric integers of 8 bits, with scales for the matrix, its rows or its blocks."""

    companions = ("weight_scale",)
    unused = ("input_scale", "output_scale")

    def __init__(self, config: ConfigReader) -> None:
        self._block: tuple[int, int] | None = None
        for weights in weight_groups(config):
            kind = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric", True))
            if kind not in ((8, "float", True), (8, "int", True)):
                raise config.error("config_groups", "symmetric weights of 8 bits, float or int", quoted(weights))
            strategy, block = weights.get("strategy"), weights.get("block_structure")
            if strategy not in ("tensor", "channel", "block"):
                raise config.error("config_groups", "a strategy tensor, channel or block", quoted(strategy))
            if strategy == "block" and block is not None:
                if not is_pair_of_sizes(block):
                    expected = "a block_structure of two integers of at least 1"
                    raise config.error("config_groups", expected, quoted(block))
                self._block = block[0], block[1]

    def is_packed(self, module: ModuleTensors) -> bool:
        """Whether the weight has numbers of 8 bits."""
        return module.dtype("weight") in (*FLOAT8, "I8")

    def abstract_matrix(self, shape: tuple[int, int], dtype: str, module: ModuleTensors | None = None) -> Scaled:
        """`Scaled`; in most files scales are bfloat16, one for a block or, without blocks, for a row."""
        block, kind, scales = self._block or (1, shape[1]), "float8_e4m3fn", np.dtype(ml_dtypes.bfloat16)
        if module is not None:
            kind, scales = DTYPES[module.dtype("weight")].name, module.companion_dtype("weight_scale", SCALES)
            if self._block is None and math.prod(module.shape("weight_scale")) == 1:
                block = shape
        return Scaled.abstract(shape, clipped_block(block, shape), scales, kind)

    def abstract_rows(
        self,
        tensor: str,
        shape: tuple[int, int],
        index: Int[np.ndarray, " n"],
        dtype: str,
        module: ModuleTensors | None = None,
    ) -> Scaled:
        """Rows that cut blocks have scales of their own."""
        return self.abstract_matrix(shape, dtype, module).abstract_rows(index)

    def read(self, module: ModuleTensors) -> Scaled:
        """`Scaled`, in the dtype of its scales."""
        out, width = module.matrix_shape()
        codes = module.read("weight")
        blocks = {(out, 1): (1, width), (out,): (1, width), (1, 1): (out, width), (1,): (out, width), (): (out, width)}
        if self._block:
            high, wide = block = clipped_block(self._block, (out, width))
            blocks = {(-(-out // high), -(-width // wide)): block}
        scale = module.companion("weight_scale", SCALES, *blocks)
        high, wide = blocks[scale.shape]
        return Scaled.from_codes(codes, scale.reshape(-(-out // high), -(-width // wide)), (high, wide))


def weight_groups(config: ConfigReader) -> Iterator[Mapping[str, Any]]:
    """How the weights of each group of modules are quantised; the other keys do not concern the weights.

    Raises:
        ConfigError: weights that are transformed, or a group that does not describe its weights.
    """
    config.leave_out("format", "quantization_status", "ignore", "global_compression_ratio", "kv_cache_scheme")
    config.leave_out("version", "sparsity_config", "transform_config")
    if transform := config.peek("transform_config"):
        raise config.error("transform_config", "none", quoted(transform))
    for name, group in config.take("config_groups", dict).items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise config.error("config_groups", f"an object 'weights' in {quoted(name)}", quoted(group))
        yield weights
