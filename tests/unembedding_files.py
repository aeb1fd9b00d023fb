"""Tiny checkpoints whose unembedding is stored, tied and named in every way that files on the hub have.

Only the unembedding differs between the cases of a port, so its final states are computed by one program for all.
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracle
import tiny
import torch
from safetensors.numpy import load_file, save_file

import jaxlin

Tensors = dict[str, np.ndarray]

PORTS = ["llama", "smollm3", "gemma", "gemma2", "gemma3_text", "gemma3", "qwen2", "qwen3", "phi3", "phi", "mistral"]
PORTS += ["ministral", "ministral3", "mistral3", "olmo", "olmo2", "olmo3", "vaultgemma", "phi4_multimodal"]
PORTS += ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gpt_neox", "gpt2", "muse_glimmer", "gpt_oss"]
PORTS += ["gemma3n_text", "gemma4_text"]
"""One variant of each `model_type` but those of `DOUBLE`."""

DOUBLE = ["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "olmo_hybrid"]
"""Types compared in float64: with other embeddings the delta rule makes more of float32's rounding than the bound."""

EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight")
"""What the embedding matrix is called below the prefix of the decoder."""

HEADS = {"language_model.model.": "language_model.lm_head.weight", "gpt_neox.": "embed_out.weight"}
"""What the unembedding is called where it is not lm_head.weight, by the prefix of the decoder."""


class Checkpoint:
    """The files of a tiny model, edited and written to a folder of its own."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = Path(shutil.copytree(source, folder))
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors: Tensors = dict(load_file(folder / "model.safetensors"))
        self.embedding = next(name for name in self.tensors if name.endswith(EMBEDDINGS))
        self.body = next(self.embedding.removesuffix(end) for end in EMBEDDINGS if self.embedding.endswith(end))
        self.head = HEADS.get(self.body, "lm_head.weight")

    def write(self) -> Path:
        """Write the edited config and tensors, and return their folder."""
        (self.folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, self.folder / "model.safetensors", {"format": "pt"})
        return self.folder

    def tie(self, claim: bool | None) -> None:
        """Set what the config says of tied embeddings; None leaves the key out."""
        for config in (self.config, self.config.get("text_config", {})):
            config.pop("tie_word_embeddings", None)
        if claim is not None:
            self.config["tie_word_embeddings"] = claim

    def move(self, body: str, head: str, vision: str) -> None:
        """Give the tensors of the text half, the unembedding and the vision half other prefixes."""

        def new(name: str) -> str:
            for before, after in ((self.head.removesuffix("weight"), head), (self.body, body)):
                # A wrapper may keep its vision half below `model.` too.
                if name.startswith(before) and "visual." not in name:
                    return after + name.removeprefix(before)
            return vision + name.removeprefix("model.")

        self.rename(new)

    def rename(self, new: Callable[[str], str]) -> None:
        """Give every tensor another name."""
        self.tensors = {new(name): values for name, values in self.tensors.items()}


def random_head(shape: tuple[int, ...]) -> np.ndarray:
    """An unembedding unlike the embeddings."""
    return (0.2 * np.random.default_rng(1).normal(size=shape)).astype(np.float32)


class Stream:
    """The residual stream after the final norm, computed by one program for all cases of a port."""

    def __init__(self) -> None:
        self.config: Any = None
        self.program = jax.jit(lambda model, x: model(x))

    def __call__(self, model: jaxlin.Decoder) -> jax.Array:
        """The stream of the prompt `tiny.IDS`. The unembedding differs between cases and is removed before tracing."""
        bare = copy.copy(model)
        self.config = self.config or bare.config
        bare.lm_head, bare.config = None, self.config
        return self.program(bare, model.embed(tiny.IDS))


def difference(folder: Path, stream: Stream) -> tuple[jaxlin.Decoder, float]:
    """The model, and how far its logits are from transformers'."""
    dtype = "float64" if jax.config.jax_enable_x64 else "float32"
    model, _ = jaxlin.load(folder, dtype=dtype)
    reference = oracle.logits(folder, tiny.IDS, getattr(torch, dtype))
    assert np.abs(reference).max() > 1
    return model, float(np.abs(np.asarray(model.unembed(stream(model))) - reference).max())


LLAVA = [
    ("language_model.model.", "language_model.lm_head.", ""),
    ("language_model.model.", "lm_head.", ""),
    ("model.language_model.", "lm_head.", "model."),
    ("model.language_model.", "language_model.lm_head.", "model."),
    ("language_model.", "lm_head.", ""),
    ("model.language_model.model.", "lm_head.", "model."),
    ("language_model.model.model.", "lm_head.", ""),
]

QWEN = [
    ("model.", "lm_head.", ""),
    ("model.language_model.", "lm_head.", "model."),
    ("language_model.", "lm_head.", ""),
]

WRAPPERS = {"gemma3": LLAVA, "mistral3": LLAVA, "qwen2_vl": QWEN, "qwen2_5_vl": QWEN, "qwen3_vl": QWEN[1:]}
WRAPPERS |= {"muse_glimmer": QWEN[1:], "qwen3_5": QWEN[1:2], "qwen3_5_moe": QWEN[1:2]}
"""For each wrapper, the prefixes of the text half, the unembedding and the vision half."""

CASES = [
    *((True, stored) for stored in ("both", "equal", "embeddings", "head")),
    *((claim, stored) for claim in (False, None) for stored in ("both", "embeddings", "head")),
]
"""What the config claims of tied embeddings, and which of the two matrices are stored."""


def claiming(source: Path, folder: Path, claim: bool | None, stored: str) -> Path:
    """A copy of a checkpoint that claims and stores what one of `CASES` says."""
    edited = Checkpoint(source, folder)
    edited.tie(claim)
    matrix = edited.tensors[edited.embedding]
    edited.tensors[edited.head] = random_head(matrix.shape) if stored in ("both", "head") else matrix.copy()
    if stored in ("embeddings", "head"):
        del edited.tensors[edited.head if stored == "embeddings" else edited.embedding]
    return edited.write()


def placed(source: Path, folder: Path, body: str, head: str, vision: str) -> Path:
    """A copy of a wrapper with an unembedding of its own, and with these prefixes."""
    edited = Checkpoint(source, folder)
    edited.tie(False)
    edited.tensors[edited.head] = random_head(edited.tensors[edited.embedding].shape)
    edited.move(body, head, vision)
    return edited.write()
