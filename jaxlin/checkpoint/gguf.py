"""GGUF: metadata, tokenizer and weights in one file or in several. The `gguf` library decodes its packed types.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from jaxlin.checkpoint.gguf_header import GGUFEntry, read_header
from jaxlin.checkpoint.gguf_shards import KEYS, check_shards, shard_paths
from jaxlin.common.arrays import read_aligned
from jaxlin.common.errors import CheckpointError

FLOATS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""The types that are not packed, whose values are read as they are stored."""

CHUNK = 2**22
"""How many values are decoded at a time: the gguf library needs several times their memory meanwhile."""


class GGUFFile:
    """A GGUF checkpoint: its metadata is read and checked, its tensors are read and decoded on demand.

    Args:
        path: the file, or any of the files that it is split into.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self.tokenizer_files: dict[str, Path] = {}
        header = _header(path)
        paths = shard_paths(path, header[0])
        headers = [header if shard == path else _header(shard) for shard in paths]
        metadata, tensors = zip(*headers, strict=True)
        check_shards(paths, metadata, tensors)
        self.config = {key: value for key, value in metadata[0].items() if key not in KEYS}
        self._tensors = {name: tensor for each in tensors for name, tensor in each.items()}
        self._paths = {name: shard for shard, each in zip(paths, tensors, strict=True) for name in each}

    def forget(self, prefix: str) -> None:
        """Drop the metadata whose keys begin with `prefix`: a vocabulary takes as much memory as a layer."""
        self.config = {key: value for key, value in self.config.items() if not key.startswith(prefix)}

    def names(self) -> frozenset[str]:
        """The names of all tensors, as ggml has them."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, ``(out, in)``: in the file the fastest axis comes first."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """The ggml type of a tensor."""
        return self._tensors[name].kind.name

    def file_of(self, name: str) -> Path:
        """The file that contains a tensor."""
        return self._paths[name]

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, packed ones decoded to float32."""
        return self.read_slice(name, ())

    def read_raw(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """The stored bytes of a tensor, ``[..., out, bytes]``: one row of blocks for each row of values.

        Args:
            name: the tensor.
            rows: the rows of its first axis that are read, if it has two axes or more.
        """
        _, shape, start, size = self._tensors[name]
        leading, width = list(shape[:-1]), size // max(1, math.prod(shape[:-1]))
        if leading:
            first, last, _ = rows.indices(leading[0])
            start += first * (size // max(1, leading[0]))
            leading[0] = max(0, last - first)
        count = math.prod(leading) * width
        try:
            raw = read_aligned(self._paths[name], start, count)
        except OSError as error:
            raise CheckpointError(f"{self._paths[name]}, tensor {name}: cannot be read: {error.strerror}.") from error
        if raw.size != count:
            raise CheckpointError(f"{self._paths[name]}, tensor {name}: the file became shorter while it was open.")
        return raw.reshape(*leading, width)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor; the others are not decoded."""
        return self.read_slice(name, (slice(start, stop),))

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, with a slice for each axis; what the slices of leading axes leave out is not decoded."""
        kind, shape, _, _ = self._tensors[name]
        width = shape[-1]
        if index and len(shape) > 1 and index[0].step in (None, 1):
            raw, index = self.read_raw(name, index[0]), (slice(None), *index[1:])
        else:
            raw = self.read_raw(name)
        if kind.name in FLOATS:
            return raw.view(FLOATS[kind.name])[(*index, ...)]
        # Blocks run along the last axis, which is therefore sliced after decoding.
        leading = index[: len(shape) - 1]
        packed = raw[leading]
        try:
            decoded = _decoded(packed.reshape(-1, raw.shape[-1]), kind, width)
        except (NotImplementedError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self._paths[name]}, tensor {name}: expected a type that the gguf library decodes; found {kind.name}."
            ) from error
        return decoded.reshape(*packed.shape[:-1], width)[(slice(None),) * len(leading) + index[len(leading) :]]


def _header(path: Path) -> tuple[dict[str, Any], dict[str, GGUFEntry]]:
    """The metadata and the tensors of one file."""
    try:
        # The header alone is read: of a mapped file only the pages that are accessed are.
        data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
        return read_header(data.data)
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: expected a whole GGUF file; found one that cannot be read ({error})."[:400]
            + " It is truncated or damaged: download it again."
        ) from error


def _decoded(rows: np.ndarray, kind: gguf.GGMLQuantizationType, width: int) -> np.ndarray:
    decoded = np.empty((len(rows), width), np.float32)
    step = max(1, CHUNK // width)
    # A damaged scale may be infinite: loading refuses such values, and names the tensor.
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), step):
            decoded[start : start + step] = gguf.dequantize(rows[start : start + step], kind)
    return decoded


_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""ggml's names within a block, and Hugging Face's. An architecture overrides those that differ: `ffn_norm`, the norm
before the MLP, is pre_feedforward_layernorm in Gemma, and Phi-3 keeps gate and up fused in `ffn_up`."""

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)(?:\.(?P<kind>\w+))?")


def hf_name(name: str, overrides: Mapping[str, str] | None = None) -> str:
    """Hugging Face's name of the tensor that ggml calls `name`; `name` itself if it has none, as for rope_freqs.

    Args:
        name: the name in the GGUF file.
        overrides: parts that an architecture names differently, such as ``{"ffn_norm": "pre_feedforward_layernorm"}``;
            a part with its kind, or a part that never has one, gives all of the name: ``{"ssm_dt.bias": "dt_bias"}``.
    """
    match = _NAME.fullmatch(name)
    if not match:
        return name
    layer, part, kind = match["layer"], match["part"], match["kind"]
    table = {**(_TOP if layer is None else _BLOCK), **(overrides or {})}
    prefix, exact = "" if layer is None else f"model.layers.{layer}.", f"{part}.{kind}" if kind else part
    if overrides and exact in overrides:
        return prefix + overrides[exact]
    return f"{prefix}{table[part]}.{kind}" if part in table and kind in ("weight", "bias") else name


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of queries and keys in Hugging Face's order: neighbouring pairs become the two halves of each head.

    Whole rows move, so that this serves weights, biases and the packed rows of `GGUFFile.read_raw` alike.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
