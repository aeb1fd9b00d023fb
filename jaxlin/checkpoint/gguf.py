"""GGUF: one file with metadata, tokenizer and weights, read and decoded by the `gguf` library.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from jaxlin.errors import CheckpointError

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
"""The types that are not packed, but for BF16, which is decoded like the packed ones."""


class GGUFFile:
    """A GGUF file: its metadata is read and checked, its tensors are decoded when asked for."""

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self.tokenizer_files: dict[str, Path] = {}
        try:
            with path.open("rb") as file:
                magic = file.read(4)
            if magic != b"GGUF":
                raise CheckpointError(f"{path}: expected the magic bytes GGUF; found {magic!r}.")
            reader = gguf.GGUFReader(path)
            self.config = {name: field.contents() for name, field in reader.fields.items()}
        except CheckpointError:
            raise
        # The library checks nothing: a damaged file fails wherever the damage leads it.
        except Exception as error:
            raise CheckpointError(
                f"{path}: expected a whole GGUF file; found one that cannot be read ({type(error).__name__}: {error})."[
                    :300
                ]
                + " It is truncated or damaged: download it again."
            ) from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def names(self) -> frozenset[str]:
        """The tensors there are, by ggml's names."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, ``[out, in]``: the file counts its fastest axis first."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> str:
        """The ggml type of a tensor."""
        return self._tensors[name].tensor_type.name

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, packed ones decoded to float32."""
        tensor = self._tensors[name]
        kind = tensor.tensor_type.name
        if kind in FLOATS:
            return np.asarray(tensor.data).view(FLOATS[kind]).reshape(self.shape(name))
        try:
            return gguf.dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name))
        except (NotImplementedError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.source}, tensor {name}: expected a type that the gguf library decodes; found {kind}."
            ) from error

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor."""
        return self.read(name)[start:stop]


_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


def hf_name(name: str, block: Mapping[str, str] = _BLOCK) -> str:
    """Hugging Face's name of a tensor that ggml calls `name`; `name` itself where there is none."""
    found = _NAME.fullmatch(name)
    if not found:
        return name
    layer, part, kind = found["layer"], found["part"], found["kind"]
    table = _TOP if layer is None else block
    if part not in table:
        return name
    return f"{table[part]}.{kind}" if layer is None else f"model.layers.{layer}.{table[part]}.{kind}"


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of queries and keys: pairs side by side become halves of each head."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
