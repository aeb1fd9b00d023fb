"""AWQ: codes of 4 bits, packed along the rows of a weight, with a scale and a zero point for each group of a row.

The tensors of a module are ``qweight``, int32 ``[in, out / 8]``, ``qzeros``, int32 ``[groups, out / 8]``, and
``scales``, ``[groups, out]``. The eight codes of a word belong to eight rows of the weight, from the lowest bits on to
the rows 0, 2, 4, 6, 1, 3, 5 and 7 of them. Source: Lin et al., "AWQ", 2023, and AutoAWQ's version ``gemm``.

The values are those of AutoAWQ's ``dequantize_gemm``: ``(code - zero) * scales`` in the dtype of the scales.
"""

import numpy as np
from jaxtyping import Int32, UInt8

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.printable import quoted
from jaxlin.quantized.affine import SCALES, WORD_BITS, Affine, group_count
from jaxlin.quantized.format import ModuleTensors, QuantizedFormat
from jaxlin.quantized.gptq import RUNTIME_KEYS, take_group_size

BITS = 4
"""The bits of a code."""

CODES_PER_WORD = WORD_BITS // BITS


class AWQ(QuantizedFormat):
    """``awq`` in its version ``gemm``, the only one that is read."""

    stem = "qweight"
    companions = ("qzeros", "scales")

    def __init__(self, config: ConfigReader) -> None:
        config.expect("bits", BITS)
        config.expect("zero_point", True)
        self._group_size = take_group_size(config, 128)
        version = config.take("version", str, config.take("format", str, "gemm")).lower()
        if version != "gemm":
            raise config.error("version", "gemm, the only layout that is read", quoted(version))
        if config.peek("backend") == "llm-awq":
            raise config.error("backend", "autoawq, whose layout is read", "'llm-awq'")
        self.take_skipped(config, "modules_to_not_convert")
        config.leave_out("do_fuse", "fuse_max_seq_len", "modules_to_fuse", "sym", "desc_act", *RUNTIME_KEYS)

    def abstract_matrix(self, shape: tuple[int, int], dtype: str, module: ModuleTensors | None = None) -> Affine:
        """`Affine`; scales are float16 in nearly all files."""
        kind = np.dtype(np.float16) if module is None else module.companion_dtype("scales", SCALES)
        return Affine.abstract(shape, self._group_size, BITS, kind, ordered=True)

    def shape(self, module: ModuleTensors) -> tuple[int, int]:
        """``(out, in)``: each word has the codes of eight rows and one column."""
        width, words = module.matrix_shape(f"words of I32 and shape (in, out / {CODES_PER_WORD})", "I32")
        return words * CODES_PER_WORD, width

    def read(self, module: ModuleTensors) -> Affine:
        """`Affine`."""
        out, width = self.shape(module)
        groups = group_count(module, width, self._group_size)
        words = module.companion("qweight", ("I32",), (width, out // CODES_PER_WORD))
        zeros = module.companion("qzeros", ("I32",), (groups, out // CODES_PER_WORD))
        scale = module.companion("scales", SCALES, (groups, out))
        pairs = row_pairs(zeros)
        zero = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(out, groups)
        return Affine(row_pairs(words), zero, np.ascontiguousarray(scale.T), None, BITS)


def row_pairs(words: Int32[np.ndarray, "n w"]) -> UInt8[np.ndarray, "p n"]:
    """The codes in words along the rows of a weight, as `jaxlin.quantized.codes` packs them: two rows a byte.

    In a word the codes of the even rows come first, then those of the odd ones.
    """
    unsigned = words.view(np.uint32)
    pairs = np.empty((unsigned.shape[1], CODES_PER_WORD // 2, len(unsigned)), np.uint8)
    for k in range(CODES_PER_WORD // 2):
        even, odd = ((unsigned >> np.uint32(shift)).astype(np.uint8) for shift in (BITS * k, 16 + BITS * k))
        pairs[:, k] = ((even & 15) | (odd << BITS)).T
    return pairs.reshape(-1, len(unsigned))
