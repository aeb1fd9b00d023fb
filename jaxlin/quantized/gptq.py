"""GPTQ: codes of 4 or 8 bits, packed along the columns of a weight, with a scale and a zero point for each group.

The tensors of a module are ``qweight``, int32 ``[in bits / 32, out]``, whose words have the codes of neighbouring
columns, the first in the lowest bits; ``scales``, ``[groups, out]``; ``qzeros``, int32 ``[groups, out bits / 32]``,
packed along the rows of the weight; and ``g_idx``, int32 ``[in]``, the group of each column. Source: Frantar et al.,
"GPTQ", 2022, and the packing of AutoGPTQ.

The values are those of AutoGPTQ's dequantisation in PyTorch: ``scales * (code - zero)`` in the dtype of the scales. In
files of the first version a zero point is stored less one, modulo ``2**bits``.
"""

from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.common.printable import quoted
from jaxlin.quantized import Affine
from jaxlin.quantized.packing import Quantized

WORD = 32
"""Bits of a word."""


RUNTIME_KEYS = (
    *("damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "act_group_aware", "mse", "dataset"),
    *("model_name_or_path", "model_file_base_name", "model_seqlen", "max_input_length", "tokenizer", "batch_size"),
    *("pad_token_id", "block_name_to_quantize", "module_name_preceding_first_block", "modules_in_block_to_quantize"),
    *("cache_block_outputs", "lm_head", "use_cuda_fp16", "use_exllama", "disable_exllama", "exllama_config"),
    *("backend", "meta"),
)
"""Keys that say how the codes were found and which kernel is to multiply with them."""


class GPTQ(Quantized):
    """``gptq``, with or without reordered columns; both versions of its zero points."""

    stem = "qweight"
    suffixes = ("qzeros", "scales", "g_idx")

    def read_config(self, said: ConfigReader) -> None:
        """The bits of a code, the size of a group, and the version."""
        self._bits = said.take("bits", int)
        if self._bits not in (4, 8):
            raise said.error("bits", "4 or 8", quoted(self._bits))
        self._size = said.take("group_size", int)
        if self._size != -1 and not 0 < self._size < 2**31:
            raise said.error("group_size", "a number of columns, or -1 for all of them", quoted(self._size))
        self._ordered = not said.take("desc_act", bool, False)
        version = said.take("checkpoint_format", str, said.take("format", str, "gptq"))
        if version not in ("gptq", "gptq_v2"):
            raise said.error("checkpoint_format", "gptq or gptq_v2", quoted(version))
        self._stored_less = int(version == "gptq")
        said.expect("pack_dtype", "int32")
        said.expect("is_marlin_format", False)
        for key in ("dynamic", "rotation", "adapter"):
            if said.peek(key):
                raise said.error(key, "none", quoted(said.peek(key)))
            said.leave_out(key)
        self.take_skipped(said, "modules_to_not_convert")
        said.leave_out("sym", *RUNTIME_KEYS)

    def is_packed_tensor(self, name: str) -> bool:
        """Every qweight is."""
        return True

    def packed_shape(self, module: str) -> tuple[int, ...]:
        """As many columns as codes, as many rows as a row of words has words."""
        shape = self.folder.shape(f"{module}.qweight")
        if len(shape) != 2 or self.folder.dtype(f"{module}.qweight") != "I32":
            found = f"{self.folder.dtype(f'{module}.qweight')} of shape {shape}"
            raise CheckpointError(
                f"{self.folder.file_of(f'{module}.qweight')}, tensor {module}.qweight: expected words of I32 and shape "
                f"(in / {WORD // self._bits}, out); found {found}."
            )
        words, out = shape
        return out, words * (WORD // self._bits)

    def packed(self, module: str) -> Affine:
        """`Affine`."""
        out, width = self.packed_shape(module)
        groups = group_count(self, module, width, self._size)
        words = self.part(module, "qweight", ("I32",), (width * self._bits // WORD, out))
        zeros = self.part(module, "qzeros", ("I32",), (groups, -(-out * self._bits // WORD)))
        scale = self.part(module, "scales", ("F16", "BF16", "F32"), (groups, out))
        group = group_of_columns(self, module, "g_idx", width, groups, required=not self._ordered)
        zero = (codes_in_words(zeros, self._bits)[:, :out] + self._stored_less) & (2**self._bits - 1)
        codes = codes_of_columns(words, self._bits)
        return Affine(codes, np.ascontiguousarray(zero.T), np.ascontiguousarray(scale.T), group, self._bits)

    def planned(self, shape: tuple[int, int], dtype: str) -> Affine:
        """`Affine`; scales are float16 in nearly all files."""
        groups = 1 if self._size == -1 else -(-shape[1] // self._size)
        return Affine.form(shape, groups, self._bits, np.float16, ordered=self._ordered)


def group_count(quantized: Quantized, module: str, width: int, size: int) -> int:
    """How many groups of `size` columns a row of `width` has.

    Raises:
        CheckpointError: the last of them would be smaller.
    """
    if size == -1:
        return 1
    if width % size:
        name = f"{module}.{quantized.stem}"
        raise CheckpointError(
            f"{quantized.folder.file_of(name)}, tensor {name}: expected rows of whole groups of {size} columns; found "
            f"{width} columns."
        )
    return width // size


def group_of_columns(
    quantized: Quantized, module: str, suffix: str, width: int, groups: int, *, required: bool
) -> Int32[np.ndarray, " i"] | None:
    """The group of each column, as a tensor of the file says it; None where groups are runs of one length.

    Raises:
        CheckpointError: it is `required` and missing, or names a group that is none.
    """
    name, folder = f"{module}.{suffix}", quantized.folder
    if name not in folder.names() and not required:
        return None
    group = quantized.part(module, suffix, ("I32",), (width,))
    if group.size and (group.min() < 0 or group.max() >= groups):
        raise CheckpointError(
            f"{folder.file_of(name)}, tensor {name}: expected groups in 0..{groups - 1}; found {group.min()} to "
            f"{group.max()}."
        )
    return None if np.array_equal(group, np.arange(width) // (width // groups)) else group


def codes_in_words(words: Int32[np.ndarray, "n w"], bits: int) -> UInt8[np.ndarray, "n v"]:
    """The codes in the words of each row, those in the lowest bits first."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    return raw if bits == 8 else np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)


def codes_of_columns(words: Int32[np.ndarray, "w o"], bits: int) -> UInt8[np.ndarray, "p i"]:
    """The codes in words along the columns of a weight, as `jaxlin.quantized.codes` keeps them: two rows a byte."""
    each = WORD // bits
    words = words.view(np.uint32)
    if bits == 4 and words.shape[1] % 2:
        words = np.pad(words, ((0, 0), (0, 1)))
    codes = np.empty((words.shape[1] * bits // 8, len(words) * each), np.uint8)
    for k in range(each):
        part: Any = (words >> np.uint32(k * bits)).astype(np.uint8)
        if bits == 4:
            part = (part[:, ::2] & 15) | (part[:, 1::2] << 4)
        codes[:, k::each] = part.T
    return codes
