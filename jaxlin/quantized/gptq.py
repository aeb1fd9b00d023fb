"""GPTQ: codes of 4 or 8 bits, packed along the columns of a weight, with a scale and a zero point for each group.

The tensors of a module are ``qweight``, int32 ``[in bits / 32, out]``, whose words have the codes of neighbouring
columns, the first in the lowest bits; ``scales``, ``[groups, out]``; ``qzeros``, int32 ``[groups, out bits / 32]``,
packed along the rows of the weight; and ``g_idx``, int32 ``[in]``, the group of each column. Source: Frantar et al.,
"GPTQ", 2022, and the packing of AutoGPTQ.

The values are those of AutoGPTQ's dequantisation in PyTorch: ``scales * (code - zero)`` in the dtype of the scales. In
files of the first version a zero point is stored minus one, modulo ``2**bits``.
"""

import numpy as np
from jaxtyping import Int32, UInt8

from jaxlin.checkpoint.config import ConfigReader
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
from jaxlin.quantized.format import ModuleTensors, QuantizedFormat

RUNTIME_KEYS = (
    *("damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "act_group_aware", "mse", "dataset"),
    *("model_name_or_path", "model_file_base_name", "model_seqlen", "max_input_length", "tokenizer", "batch_size"),
    *("pad_token_id", "block_name_to_quantize", "module_name_preceding_first_block", "modules_in_block_to_quantize"),
    *("cache_block_outputs", "lm_head", "use_cuda_fp16", "use_exllama", "disable_exllama", "exllama_config"),
    *("backend", "meta"),
)
"""Keys about how the codes were computed, and about the kernel that is to multiply with them."""


class GPTQ(QuantizedFormat):
    """``gptq``, with or without reordered columns; both versions of its zero points."""

    stem = "qweight"
    companions = ("qzeros", "scales", "g_idx")

    def __init__(self, config: ConfigReader) -> None:
        self._bits = config.take("bits", int)
        if self._bits not in (4, 8):
            raise config.error("bits", "4 or 8", quoted(self._bits))
        self._group_size = take_group_size(config)
        self._ordered = not config.take("desc_act", bool, False)
        version = config.take("checkpoint_format", str, config.take("format", str, "gptq"))
        if version not in ("gptq", "gptq_v2"):
            raise config.error("checkpoint_format", "gptq or gptq_v2", quoted(version))
        self._zero_offset = int(version == "gptq")
        config.expect("pack_dtype", "int32")
        config.expect("is_marlin_format", False)
        for key in ("rotation", "adapter"):
            if config.peek(key):
                raise config.error(key, "none", quoted(config.peek(key)))
            config.leave_out(key)
        rules = config.take("dynamic", dict, None) or {}
        if own := [rule for rule in rules if not rule.startswith("-:")]:
            raise config.error("dynamic", "only rules of modules that are not quantised, '-:...'", quoted(own))
        self.take_skipped(config, "modules_to_not_convert")
        config.leave_out("sym", *RUNTIME_KEYS)

    def abstract_matrix(self, shape: tuple[int, int], dtype: str, module: ModuleTensors | None = None) -> Affine:
        """`Affine`; scales are float16 in nearly all files."""
        kind, ordered = np.dtype(np.float16), self._ordered
        if module is not None:
            kind = module.companion_dtype("scales", SCALES)
            ordered = self._group(module, shape[1]) is None
        return Affine.abstract(shape, self._group_size, self._bits, kind, ordered=ordered)

    def shape(self, module: ModuleTensors) -> tuple[int, int]:
        """``(out, in)``: each word has the codes of one row and of several columns."""
        codes_per_word = WORD_BITS // self._bits
        words, out = module.matrix_shape(f"words of I32 and shape (in / {codes_per_word}, out)", "I32")
        return out, words * codes_per_word

    def read(self, module: ModuleTensors) -> Affine:
        """`Affine`."""
        out, width = self.shape(module)
        groups = group_count(module, width, self._group_size)
        words = module.companion("qweight", ("I32",), (width * self._bits // WORD_BITS, out))
        zeros = module.companion("qzeros", ("I32",), (groups, -(-out * self._bits // WORD_BITS)))
        scale = module.companion("scales", SCALES, (groups, out))
        zero = (codes_in_words(zeros, self._bits)[:, :out] + self._zero_offset) & (2**self._bits - 1)
        codes = codes_of_columns(words, self._bits)
        return Affine(
            codes, np.ascontiguousarray(zero.T), np.ascontiguousarray(scale.T), self._group(module, width), self._bits
        )

    def _group(self, module: ModuleTensors, width: int) -> Int32[np.ndarray, " i"] | None:
        groups = group_count(module, width, self._group_size)
        return group_of_columns(module, "g_idx", width, groups, required=not self._ordered)


def take_group_size(config: ConfigReader, *default: int) -> int:
    """The columns of a group, -1 for one group, under the key that GPTQ and AWQ share.

    Raises:
        ConfigError: the value is not a possible number of columns.
    """
    size = config.take("group_size", int, *default)
    if size != -1 and not 0 < size <= MAX_SIDE:
        raise config.error("group_size", "a number of columns, or -1 for all of them", quoted(size))
    return size


def codes_of_columns(words: Int32[np.ndarray, "w o"], bits: int) -> UInt8[np.ndarray, "p i"]:
    """The codes in words along the columns of a weight, as `jaxlin.quantized.codes` packs them: two rows a byte."""
    codes_per_word = WORD_BITS // bits
    unsigned = words.view(np.uint32)
    if bits == 4 and unsigned.shape[1] % 2:
        unsigned = np.pad(unsigned, ((0, 0), (0, 1)))
    codes = np.empty((unsigned.shape[1] * bits // 8, len(unsigned) * codes_per_word), np.uint8)
    for k in range(codes_per_word):
        part = (unsigned >> np.uint32(k * bits)).astype(np.uint8)
        if bits == 4:
            part = (part[:, ::2] & 15) | (part[:, 1::2] << 4)
        codes[:, k::codes_per_word] = part.T
    return codes
