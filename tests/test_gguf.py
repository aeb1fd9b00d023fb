"""GGUF files of every architecture, written as llama.cpp's converter writes them, against transformers."""

from collections.abc import Callable
from pathlib import Path

import gguf_files
import jax
import numpy as np
import oracle
import pytest
import tiny
import torch

import jaxlin

GEMMA = {**tiny.GEMMA, "query_pre_attn_scalar": 32}
NESTED = {**tiny.OLMO3, "full_attention": {**tiny.OLMO3["full_attention"], "attention_factor": 1 + 0.1 * np.log(4)}}
YARN = tiny.rope("yarn", **tiny.YARN)
R1_0528 = tiny.rope("yarn", **tiny.YARN, attn_factor=0.8782488562869419)
PHI2 = {**tiny.BASE, "intermediate_size": 256}

VARIANTS: dict[str, tuple[str, tiny.Variant]] = {
    "llama": ("llama", tiny.VARIANTS["llama"]),
    "llama, head_dim": ("llama", tiny.VARIANTS["llama, head_dim"]),
    "llama, tied": ("llama", tiny.VARIANTS["llama, tied"]),
    "llama, biases": ("llama", tiny.VARIANTS["llama, biases"]),
    "llama, rope linear": ("llama", tiny.VARIANTS["llama, rope linear"]),
    "llama, rope yarn": ("llama", tiny.VARIANTS["llama, rope yarn"]),
    "mistral": ("llama", tiny.VARIANTS["mistral"]),
    "smollm3": ("smollm3", tiny.VARIANTS["smollm3"]),
    "ministral3": ("mistral3", tiny.VARIANTS["ministral3"]),
    "mistral as mistral3": ("mistral3", tiny.VARIANTS["mistral"]),
    "gemma": ("gemma", tiny.VARIANTS["gemma"]),
    "gemma2": ("gemma2", tiny.Variant("Gemma2Config", GEMMA)),
    "gemma2, 27B": (
        "gemma2",
        tiny.Variant("Gemma2Config", {**GEMMA, "num_hidden_layers": 46, "query_pre_attn_scalar": 16}),
    ),
    "gemma3": (
        "gemma3",
        tiny.Variant("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7, "rope_parameters": tiny.NESTED}),
    ),
    "qwen2": ("qwen2", tiny.VARIANTS["qwen2"]),
    "qwen2, yarn": ("qwen2", tiny.Variant("Qwen2Config", {**tiny.GQA, **YARN})),
    "qwen3": ("qwen3", tiny.VARIANTS["qwen3"]),
    "qwen3, tied": ("qwen3", tiny.VARIANTS["qwen3, tied"]),
    "qwen3, R1-0528": ("qwen3", tiny.Variant("Qwen3Config", {**tiny.GQA, "head_dim": 32, **R1_0528})),
    "phi3": ("phi3", tiny.VARIANTS["phi3"]),
    "phi3, longrope, short": ("phi3", tiny.VARIANTS["phi3, longrope, short"]),
    "phi3, longrope, long": ("phi3", tiny.VARIANTS["phi3, longrope, long"]),
    "phi2": ("phi2", tiny.Variant("PhiConfig", PHI2)),
    "olmo": ("olmo", tiny.VARIANTS["olmo"]),
    "olmo, clip_qkv": ("olmo", tiny.VARIANTS["olmo, clip_qkv"]),
    "olmo2": ("olmo2", tiny.VARIANTS["olmo2"]),
    "olmo3": ("olmo2", tiny.Variant("Olmo3Config", {**tiny.VARIANTS["olmo3"].options, "rope_parameters": NESTED})),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the checkpoint of one of `VARIANTS`, written once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tiny.build(VARIANTS[name][1], tmp_path_factory.mktemp("checkpoint"))
        return made[name]

    return of


def logits(path: Path, ids: list[int], dtype: str) -> np.ndarray:
    model, _ = jaxlin.load(path, dtype=dtype)
    return np.asarray(model.unembed(jax.jit(lambda model, x: model(x))(model, model.embed(ids))))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits(name: str, folder: Callable[[str], Path], tmp_path: Path, x64: None) -> None:
    arch, variant = VARIANTS[name]
    path, ids = tmp_path / "tiny.gguf", tiny.ids_of(variant)
    exact = gguf_files.write(path, folder(name), arch)
    for dtype, bound in (("float32", 2e-5), ("float64", 1e-10)):
        expected = oracle.logits(exact, ids, getattr(torch, dtype))
        assert 1 < np.abs(expected).max() < 30
        np.testing.assert_allclose(logits(path, ids, dtype), expected, rtol=0, atol=bound)
