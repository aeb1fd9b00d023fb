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
import transformers

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


GEMMA_256 = {**tiny.GEMMA, "head_dim": 256, "query_pre_attn_scalar": 256}
READ_BY_TRANSFORMERS = {
    "llama": tiny.VARIANTS["llama, head_dim"],
    "gemma2": tiny.Variant("Gemma2Config", GEMMA_256),
    "gemma3": tiny.Variant("Gemma3TextConfig", {**GEMMA_256, "num_hidden_layers": 7}),
    "qwen2": tiny.VARIANTS["qwen2"],
    "qwen3": tiny.Variant("Qwen3Config", {**tiny.GQA, "head_dim": 128}),
    "phi3": tiny.Variant("Phi3Config", {**tiny.GQA, "vocab_size": 32064}),
}
"""Where transformers' reader is right: it knows no rope scaling and takes the usual head sizes and scales."""


@pytest.mark.parametrize("arch", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same(arch: str, tmp_path: Path) -> None:
    """Its own reader of GGUF shares no code with the writer of these tests."""
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, tiny.build(READ_BY_TRANSFORMERS[arch], tmp_path / "checkpoint"), arch)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = model(torch.tensor([tiny.IDS])).logits[0].numpy()
    np.testing.assert_allclose(logits(path, tiny.IDS, "float32"), expected, rtol=0, atol=2e-5)


WIDE = {**tiny.GQA, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
PACKED = {
    "llama, Q8_0": ("llama", tiny.VARIANTS["llama"], lambda name: "Q8_0"),
    "qwen3, Q4_0": ("qwen3", tiny.VARIANTS["qwen3"], lambda name: "Q4_0"),
    "phi3, Q8_0": ("phi3", tiny.VARIANTS["phi3"], lambda name: "Q8_0"),
    "mistral3, BF16": ("mistral3", tiny.VARIANTS["ministral3"], lambda name: "BF16"),
    "llama, mixed": (
        "llama",
        tiny.Variant("LlamaConfig", WIDE),
        lambda name: "Q6_K" if "embed" in name or "v_proj" in name else "Q8_0" if "layers.0" in name else "Q4_K",
    ),
    "gemma3, mixed": (
        "gemma3",
        tiny.Variant("Gemma3TextConfig", {**GEMMA, **WIDE, "num_hidden_layers": 7}),
        lambda name: "Q8_0" if "v_proj" in name else "Q5_0" if "layers" in name else "Q4_K",
    ),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed(name: str, tmp_path: Path, x64: None) -> None:
    """Against transformers with what the gguf library decodes put in the place of the weights."""
    arch, variant, kinds = PACKED[name]
    path = tmp_path / "packed.gguf"
    exact = gguf_files.write(path, tiny.build(variant, tmp_path / "checkpoint"), arch, kinds)
    for dtype, bound in (("float32", 2e-5), ("float64", 1e-10)):
        expected = oracle.logits(exact, tiny.IDS, getattr(torch, dtype))
        np.testing.assert_allclose(logits(path, tiny.IDS, dtype), expected, rtol=0, atol=bound)
