"""compressed-tensors in its format ``pack-quantized``: integers of 4 or 8 bits, as llm-compressor writes them.

The tensors of a module are ``weight_packed``, int32 ``[out, in bits / 32]``, whose words have the codes of neighbouring
columns, the first in the lowest bits; ``weight_scale``, ``[out, groups]``; ``weight_shape``; and, where integers are
not symmetric, ``weight_zero_point``, int32 ``[out bits / 32, groups]``, packed along the rows. With columns reordered,
``weight_g_idx``, int32 ``[in]``, is the group of each. Integers are stored from their least one on.

The values are those of ``compressed_tensors``' ``dequantize``: ``(code - zero) * scale`` in the dtype of the scales.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.common.printable import quoted
from jaxlin.quantized import Affine
from jaxlin.quantized.codes import packed_codes
from jaxlin.quantized.gptq import WORD, codes_in_words, group_count, group_of_columns
from jaxlin.quantized.packing import Quantized

LARGEST = 2**31
"""The bound of rows and columns: no matrix is larger."""


class PackQuantized(Quantized):
    """``pack-quantized``, symmetric or not, with a scale for each row or for each group of it."""

    stem = "weight_packed"
    suffixes = ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
    left_out = ("input_scale", "output_scale", "input_zero_point", "output_zero_point")

    def read_config(self, said: ConfigReader) -> None:
        """Bits, groups and symmetry, which must be those of all groups of modules."""
        kinds = set()
        for weights in compressed_groups(said):
            bits, symmetric = weights.get("num_bits"), weights.get("symmetric", True)
            if weights.get("type", "int") != "int" or type(bits) is not int or bits not in (4, 8):
                raise said.error("config_groups", "integers of 4 or 8 bits", quoted(weights))
            if weights.get("strategy") not in ("group", "channel") or type(symmetric) is not bool:
                raise said.error("config_groups", "a strategy group or channel, symmetric or not", quoted(weights))
            size = weights.get("group_size") if weights["strategy"] == "group" else -1
            if type(size) is not int or not (size == -1 or 0 < size < LARGEST):
                raise said.error("config_groups", "a group_size of at least 1", quoted(weights))
            reordered = weights.get("actorder") not in (None, False, "weight", "static")
            kinds.add((bits, size, symmetric, reordered))
        if len(kinds) != 1:
            raise said.error("config_groups", "weights of one kind in all groups", f"{len(kinds)} kinds")
        ((self._bits, self._size, self._symmetric, self._reordered),) = kinds

    def is_packed_tensor(self, name: str) -> bool:
        """Every weight_packed is."""
        return True

    def packed_shape(self, module: str) -> tuple[int, ...]:
        """As `weight_shape` says it."""
        shape = self.part(module, "weight_shape", ("I64", "I32"), (2,)).tolist()
        words, dtype = self.folder.shape(f"{module}.weight_packed"), self.folder.dtype(f"{module}.weight_packed")
        if min(shape) < 1 or max(shape) >= LARGEST or words != (shape[0], -(-shape[1] * self._bits // WORD)):
            raise CheckpointError(
                f"{self.folder.file_of(f'{module}.weight_packed')}, tensor {module}.weight_packed: expected words of "
                f"{self._bits} bits a value of shape {quoted(shape)}, as weight_shape says; found {dtype} of shape "
                f"{words}."
            )
        return shape[0], shape[1]

    def packed(self, module: str) -> Affine:
        """`Affine`."""
        out, width = self.packed_shape(module)
        groups = group_count(self, module, width, self._size)
        words = self.part(module, "weight_packed", ("I32",), (out, -(-width * self._bits // WORD)))
        scale = self.part(module, "weight_scale", ("BF16", "F16", "F32"), (out, groups))
        (codes,) = packed_codes(
            words.view(np.uint8),
            width,
            (self._bits,),
            lambda raw: np.ascontiguousarray(codes_in_words(raw.view(np.int32), self._bits)[:, :width]),
        )
        zero = np.full((out, groups), 2 ** (self._bits - 1), np.uint8)
        if not self._symmetric:
            zeros = self.part(module, "weight_zero_point", ("I32",), (-(-out * self._bits // WORD), groups))
            zero = np.ascontiguousarray(codes_in_words(zeros.T, self._bits)[:, :out].T)
        group = group_of_columns(self, module, "weight_g_idx", width, groups, required=self._reordered)
        return Affine(codes, zero, scale, group, self._bits)

    def planned(self, shape: tuple[int, int], dtype: str) -> Affine:
        """`Affine` with scales of the dtype of the model."""
        groups = 1 if self._size == -1 else -(-shape[1] // self._size)
        return Affine.form(shape, groups, self._bits, dtype, ordered=not self._reordered)


def compressed_groups(said: ConfigReader) -> Iterator[Mapping[str, Any]]:
    """How the weights of each group of modules are quantised; other keys of compressed-tensors are no matter of them.

    Raises:
        ConfigError: weights that are transformed, or a group that says nothing of its weights.
    """
    said.leave_out("format", "quantization_status", "ignore", "global_compression_ratio", "kv_cache_scheme", "version")
    said.leave_out("sparsity_config", "transform_config")
    if transformed := said.peek("transform_config"):
        raise said.error("transform_config", "none", quoted(transformed))
    for name, group in said.take("config_groups", dict).items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise said.error("config_groups", f"an object 'weights' in {quoted(name)}", quoted(group))
        yield weights
