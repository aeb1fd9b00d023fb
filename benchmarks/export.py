"""Writes a loaded model as a checkpoint that transformers reads: the same values, dense."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

import jaxlin
from jaxlin.checkpoint import open_checkpoint
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.loading.model import SMALL
from jaxlin.loading.translated_gguf import TranslatedGGUF
from jaxlin.quantized import PackedMatrix

FAMILIES = ("llama",)
"""The model types whose tensors have the names of the parameters, and whose blocks `benchmarks.peer` detaches."""


def export(model: jaxlin.Decoder, tokenizer: jaxlin.Tokenizer, checkpoint: str | None, folder: Path) -> Path | None:
    """Write `model`, loaded from `checkpoint`, in float32 to `folder`; None for a family that is not known here."""
    opened = open_checkpoint(SMALL if checkpoint is None else checkpoint, None)
    config = dict(opened.config if isinstance(opened, CheckpointFolder) else TranslatedGGUF(opened).config)
    if config.get("model_type") not in FAMILIES:
        return None
    for stored in ("quantization_config", "torch_dtype"):
        config.pop(stored, None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    save_file(dict(tensors(model)), folder / "model.safetensors", {"format": "pt"})
    return folder


def tensors(model: jaxlin.Decoder) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters under their names in a checkpoint, unpacked."""
    leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda node: isinstance(node, PackedMatrix))[0]
    for path, parameter in leaves:
        keys: list[Any] = [key.name for key in path if key.name != "value"]
        name, stack = ".".join(keys), np.asarray(parameter[...], np.float32)
        if keys[0] == "layers":
            rest = ".".join(keys[1:])
            yield from ((f"model.layers.{i}.{rest}", np.ascontiguousarray(part)) for i, part in enumerate(stack))
        else:
            yield (name if keys[0] == "lm_head" else f"model.{name}"), stack
