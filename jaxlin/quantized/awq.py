"""AWQ: codes of 4 bits, packed along the rows of a weight, with a scale and a zero point for each group of a row.

The tensors of a module are ``qweight``, int32 ``[in, out / 8]``, ``qzeros``, int32 ``[groups, out / 8]``, and
``scales``, ``[groups, out]``. The eight codes of a word belong to eight rows of the weight, from the lowest bits on to
the rows 0, 2, 4, 6, 1, 3, 5 and 7 of them. Source: Lin et al., "AWQ", 2023, and AutoAWQ's version ``gemm``.

The values are those of AutoAWQ's ``dequantize_gemm``: ``(code - zero) * scales`` in the dtype of the scales.
"""

import numpy as np
from jaxtyping import Int32, UInt8

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.common.printable import quoted
from jaxlin.quantized import Affine
from jaxlin.quantized.gptq import RUNTIME_KEYS, group_count
from jaxlin.quantized.packing import Quantized

BITS, EACH = 4, 8
"""Of a code, and how many codes a word has."""


class AWQ(Quantized):
    """``awq`` in its version ``gemm``."""

    stem = "qweight"
    suffixes = ("qzeros", "scales")

    def read_config(self, said: ConfigReader) -> None:
        """The size of a group; what is not of version ``gemm`` is refused."""
        said.expect("bits", BITS)
        said.expect("zero_point", True)
        self._size = said.take("group_size", int, 128)
        if self._size != -1 and not 0 < self._size < 2**31:
            raise said.error("group_size", "a number of columns, or -1 for all of them", quoted(self._size))
        version = said.take("version", str, said.take("format", str, "gemm")).lower()
        if version != "gemm":
            raise said.error("version", "gemm, the only layout that is read", quoted(version))
        if said.peek("backend") == "llm-awq":
            raise said.error("backend", "autoawq, whose layout is read", "'llm-awq'")
        self.take_skipped(said, "modules_to_not_convert")
        said.leave_out("do_fuse", "fuse_max_seq_len", "modules_to_fuse", "sym", "desc_act", *RUNTIME_KEYS)

    def is_packed_tensor(self, name: str) -> bool:
        """Every qweight is."""
        return True

    def packed_shape(self, module: str) -> tuple[int, ...]:
        """As many rows as codes in a row of words, as many columns as rows of words."""
        name = f"{module}.qweight"
        shape, dtype = self.folder.shape(name), self.folder.dtype(name)
        if len(shape) != 2 or dtype != "I32":
            raise CheckpointError(
                f"{self.folder.file_of(name)}, tensor {name}: expected words of I32 and shape (in, out / {EACH}); "
                f"found {dtype} of shape {shape}."
            )
        return shape[1] * EACH, shape[0]

    def packed(self, module: str) -> Affine:
        """`Affine`."""
        out, width = self.packed_shape(module)
        groups = group_count(self, module, width, self._size)
        words = self.part(module, "qweight", ("I32",), (width, out // EACH))
        zeros = self.part(module, "qzeros", ("I32",), (groups, out // EACH))
        scale = self.part(module, "scales", ("F16", "BF16", "F32"), (groups, out))
        pairs = row_pairs(zeros)
        zero = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(out, groups)
        return Affine(row_pairs(words), zero, np.ascontiguousarray(scale.T), None, BITS)

    def planned(self, shape: tuple[int, int], dtype: str) -> Affine:
        """`Affine`; scales are float16 in nearly all files."""
        groups = 1 if self._size == -1 else -(-shape[1] // self._size)
        return Affine.form(shape, groups, BITS, np.float16, ordered=True)


def row_pairs(words: Int32[np.ndarray, "n w"]) -> UInt8[np.ndarray, "p n"]:
    """The codes in words along the rows of a weight, as `jaxlin.quantized.codes` keeps them: a byte has two rows'.

    In a word the codes of the even rows come first, then those of the odd ones.
    """
    words = words.view(np.uint32)
    pairs = np.empty((words.shape[1], EACH // 2, len(words)), np.uint8)
    for k in range(EACH // 2):
        low, high = ((words >> np.uint32(shift)).astype(np.uint8) for shift in (BITS * k, 16 + BITS * k))
        pairs[:, k] = ((low & 15) | (high << BITS)).T
    return pairs.reshape(-1, len(words))
