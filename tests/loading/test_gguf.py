"""GGUF files of every architecture, written as llama.cpp's converter writes them, against transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import jax
import numpy as np
import oracle
import pytest
import tiny
import torch
import transformers
from gguf_variants import FIRST, PACKED, VARIANTS

import jaxlin
from jaxlin.checkpoint import open_checkpoint
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.common.errors import CheckpointError, ConfigError, TokenizerError
from jaxlin.loading.shapes import shapes_of
from jaxlin.loading.translated_gguf import TranslatedGGUF
from jaxlin.quantized import GGUFBlocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the checkpoint of one of `VARIANTS`."""
    variants = {name: variant for name, (_, variant) in VARIANTS.items()}
    return tiny.built_once(variants, lambda: tmp_path_factory.mktemp("checkpoint"))


def logits(path: Path, ids: list[int], dtype: str) -> np.ndarray:
    model, _ = jaxlin.load(path, dtype=dtype)
    return np.asarray(model.unembed(jax.jit(lambda model, x: model(x))(model, model.embed(ids))))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits(name: str, folder: Callable[[str], Path], tmp_path: Path, x64: None) -> None:
    arch, variant = VARIANTS[name]
    path, ids = tmp_path / "tiny.gguf", tiny.ids_of(variant)
    exact = gguf_files.write(path, folder(name), arch)
    # Float64 tells a wrong mapping from rounding; float32 is measured once for each architecture.
    bounds = {"float64": 1e-10} | ({"float32": 2e-5} if name in FIRST else {})
    for dtype, bound in bounds.items():
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
    "qwen3moe": tiny.Variant(
        "Qwen3MoeConfig", {**tiny.VARIANTS["qwen3_moe"].options, "head_dim": 128, "moe_intermediate_size": 768}
    ),
    "phi3": tiny.Variant("Phi3Config", {**tiny.GQA, "vocab_size": 32064}),
    "gpt2": tiny.Variant("GPT2Config", {**tiny.GPT2, "max_position_embeddings": 1024}),
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


@pytest.mark.parametrize("name", PACKED)
def test_packed(name: str, tmp_path: Path, x64: None) -> None:
    """Against transformers with what the gguf library decodes put in the place of the weights."""
    arch, variant, kinds = PACKED[name]
    path = tmp_path / "packed.gguf"
    exact = gguf_files.write(path, tiny.build(variant, tmp_path / "checkpoint"), arch, kinds)
    for dtype, bound in (("float32", 2e-5), ("float64", 1e-10)):
        expected = oracle.logits(exact, tiny.IDS, getattr(torch, dtype))
        np.testing.assert_allclose(logits(path, tiny.IDS, dtype), expected, rtol=0, atol=bound)
    planned, (model, _) = shapes_of(path, None, "float32", "gate"), jaxlin.load(path)
    assert jax.tree.structure(planned.layers) == jax.tree.structure(model.layers)
    for shape, found in zip(jax.tree.leaves(planned), jax.tree.leaves(model), strict=True):
        assert (shape.shape, shape.dtype) == (found.shape, found.dtype)


def test_rows_of_packed_bytes(tmp_path: Path) -> None:
    """Picking rows of blocks and decoding them gives what decoding and then picking gives."""
    path = tmp_path / "packed.gguf"
    gguf_files.write(path, tiny.build(tiny.VARIANTS["llama"], tmp_path / "checkpoint"), "llama", lambda name: "Q8_0")
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, GGUFFile)
    model = TranslatedGGUF(checkpoint)
    moved = set()
    for name in model.names():
        tensor, rows = model.rows(name)
        if rows is not None:
            raw = checkpoint.read_raw(tensor)[rows]
            decoded = gguf.dequantize(raw, gguf.GGMLQuantizationType[model.dtype(name)])
            assert isinstance(model.read(name), GGUFBlocks)
            np.testing.assert_array_equal(model.read(name)[...], decoded)
            np.testing.assert_array_equal(model.read_rows(name, 3, 9)[...], decoded[3:9])
            moved.add(name.split(".")[-2])
    assert moved == {"q_proj", "k_proj"}


@pytest.mark.parametrize("name", ["llama, biases", "phi2"])
def test_one_tensor_of_queries_keys_and_values(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """As files of phi-2 of 2023 have it, and what llama.cpp reads of any architecture."""

    def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for kind in ("weight", "bias"):
            for layer in range(4):
                parts = [tensors.pop(f"blk.{layer}.attn_{part}.{kind}") for part in "qkv"]
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
        return tensors

    arch, path = VARIANTS[name][0], tmp_path / "fused.gguf"
    gguf_files.write(path, folder(name), arch, rename=fused)
    expected, _ = jaxlin.load(folder(name))
    found, _ = jaxlin.load(path)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), jax.tree.leaves(expected))


@pytest.mark.usefixtures("uncompiled_plans")
def test_queries_keys_and_values_of_phi3_apart(tmp_path: Path) -> None:
    """llama.cpp reads either; packed rows are those of one tensor."""
    sizes = {"attn_q": 64, "attn_k": 32, "attn_v": 32}

    def apart(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for layer in range(4):
            fused = tensors.pop(f"blk.{layer}.attn_qkv.weight")
            parts = np.split(fused, np.cumsum(list(sizes.values()))[:-1])
            tensors |= {f"blk.{layer}.{part}.weight": rows for part, rows in zip(sizes, parts, strict=True)}
        return tensors

    source = tiny.build(tiny.VARIANTS["phi3"], tmp_path / "checkpoint")
    for name, rename in (("fused", lambda tensors: tensors), ("apart", apart)):
        gguf_files.write(tmp_path / f"{name}.gguf", source, "phi3", lambda name: "Q8_0", rename=rename)
    expected, _ = jaxlin.load(tmp_path / "fused.gguf")
    found, _ = jaxlin.load(tmp_path / "apart.gguf")
    assert isinstance(found.layers.self_attn.k_proj.weight.get_value(), GGUFBlocks)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), jax.tree.leaves(expected))
    plans = [jaxlin.memory_plan(tmp_path / f"{name}.gguf", tokens=2) for name in ("fused", "apart")]
    assert plans[0].weights == plans[1].weights


def test_divisors_of_llama3(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source, path = checkpoint("llama, rope llama3"), tmp_path / "llama3.gguf"
    model, _ = jaxlin.load(source)
    plain = 1 / 1e4 ** (np.arange(0, 16, 2) / 16)
    divisors = (plain / np.array(model.config.ropes[0].inv_freq)).astype(np.float32)
    gguf_files.write(path, source, "llama", extra={"rope_freqs.weight": divisors})
    expected = oracle.logits(source, tiny.IDS, torch.float32)
    np.testing.assert_allclose(logits(path, tiny.IDS, "float32"), expected, rtol=0, atol=2e-5)


def config_of(path: Path) -> dict[str, Any]:
    return TranslatedGGUF(open_checkpoint(path)).config


@pytest.mark.parametrize(
    ("period", "slides"), [(None, [1, 1, 1, 1, 1, 0, 1]), (3, [1, 1, 0, 1, 1, 0, 1]), (0, [1] * 7), (1, [0] * 7)]
)
def test_a_pattern_of_windows(
    period: int | None, slides: list[int], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        if period is not None:
            writer.add_uint32("gemma3.attention.sliding_window_pattern", period)

    gguf_files.write(tmp_path / "any.gguf", folder("gemma3"), "gemma3", change=change)
    types = config_of(tmp_path / "any.gguf")["layer_types"]
    assert types == ["sliding_attention" if slide else "full_attention" for slide in slides]


def edited(path: Path, source: Path, arch: str, key: str, value: Any) -> Path:
    """The file with one key of its metadata set, or left out where `value` is None."""

    def change(writer: gguf.GGUFWriter) -> None:
        found = writer.kv_data[0].pop(key, None)
        if value is not None:
            kind = found.type if found else gguf.GGUFValueType.get_type(value)
            kind = gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else kind
            writer.add_key_value(key, value, gguf.GGUFValueType.STRING if isinstance(value, str) else kind)

    gguf_files.write(path, source, arch, change=change)
    return path


def test_an_embedding_model(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """How its output is pooled is no part of the decoder."""
    path = tmp_path / "any.gguf"
    gguf_files.write(path, folder("qwen3"), "qwen3", change=lambda writer: writer.add_uint32("qwen3.pooling_type", 3))
    assert jaxlin.load(path)[0].config.has_unembedding


def test_a_model_without_windows(folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = edited(tmp_path / "any.gguf", folder("gemma3"), "gemma3", "gemma3.attention.sliding_window", None)
    model, _ = jaxlin.load(path)
    assert set(model.config.windows) == {None}
    path = edited(tmp_path / "zero.gguf", folder("phi3"), "phi3", "phi3.attention.sliding_window", 0)
    model, _ = jaxlin.load(path)
    assert set(model.config.windows) == {None}


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("qwen3", "general.architecture", "mamba", "general.architecture: expected one of .*'mamba'"),
        ("qwen3", "qwen3.embedding_length", None, "expected metadata qwen3.embedding_length; found none"),
        ("qwen3", "qwen3.attention.layer_norm_rms_epsilon", None, "qwen3.attention.layer_norm_rms_epsilon; found none"),
        ("qwen3", "qwen3.expert_count", 8, "qwen3.expert_count = 8"),
        ("qwen3", "qwen3.attention.scale", 0.5, "qwen3.attention.scale = 0.5"),
        ("qwen3", "qwen3.attention.causal", False, "qwen3.attention.causal: expected True; found False"),
        ("qwen3", "qwen3.attention.head_count", 0, "qwen3.attention.head_count: expected an integer of at least 1"),
        ("qwen3", "qwen3.attention.value_length", 8, "qwen3.attention.value_length: expected 32; found 8"),
        ("qwen3", "qwen3.rope.dimension_count", 16, "rope.dimension_count: expected 32, .*whole heads; found 16"),
        ("qwen3", "qwen3.block_count", 5, "qwen3.block_count: expected 5 blocks .* found 4"),
        ("qwen3", "qwen3.rope.scaling.type", "spiral", "rope.scaling.type: .*'spiral'"),
        (
            "qwen3, R1-0528",
            "qwen3.rope.scaling.yarn_attn_factor",
            1.5,
            "expected 1.13863.* found 1.5",
        ),
        ("qwen3, R1-0528", "qwen3.rope.scaling.attn_factor", 0.5, "rope.scaling.attn_factor: expected 1; found 0.5"),
        ("olmo", "olmo.attention.layer_norm_epsilon", 1e-3, "layer_norm_epsilon: expected 1e-05; found 0.001"),
        ("olmo3", "olmo2.attention.sliding_window_pattern", "abc", "sliding_window_pattern: expected a period or 4"),
        ("qwen2", "qwen2.attention.sliding_window", 6, "qwen2.attention.sliding_window = 6"),
    ],
)
def test_metadata_that_is_refused(
    name: str, key: str, value: Any, message: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = edited(tmp_path / "wrong.gguf", folder(name), VARIANTS[name][0], key, value)
    with pytest.raises(ConfigError, match=f"wrong.gguf.*{message}"):
        jaxlin.load(path)


def test_a_tokenizer_that_is_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = edited(tmp_path / "wrong.gguf", folder("qwen3"), "qwen3", "tokenizer.ggml.model", "bert")
    with pytest.raises(
        TokenizerError, match=r"wrong.gguf: expected tokenizer.ggml.model gpt2, llama or gemma4; found 'bert'"
    ):
        jaxlin.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blk.1.attn_q_norm.weight": None}, "q_norm.weight of shape .*; found none"),
        ({"blk.1.attn_sinks.weight": np.ones(4, np.float32)}, "blk.1.attn_sinks.weight"),
        ({"blk.1.attn_q.weight": np.ones((60, 64), np.float32)}, r"q_proj.weight: expected shape \(128, 64\)"),
        ({"rope_freqs.weight": np.zeros(16, np.float32)}, "rope_freqs.weight: expected positive numbers"),
        ({"rope_factors_long.weight": np.ones(16, np.float32)}, "rope_factors_long"),
        ({"token_embd.weight": None}, "token_embd.weight; found none"),
        ({"blk.x.attn_norm.weight": np.ones(64, np.float32)}, "block_count: expected 4 blocks"),
        ({"blk.1.post_attention_norm.weight": np.ones(64, np.float32)}, "post_attention_layernorm.weight; found two"),
        ({"model.norm.weight": np.ones(64, np.float32)}, "one tensor for model.norm.weight; found two"),
        ({"blk.1.attn_qkv.weight": np.ones((256, 64), np.float32)}, "self_attn.q_proj.weight; found two"),
    ],
)
def test_tensors_that_are_refused(
    change: dict[str, np.ndarray | None], message: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values for name, values in {**tensors, **change}.items() if values is not None}

    gguf_files.write(tmp_path / "wrong.gguf", folder("qwen3"), "qwen3", rename=renamed)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        jaxlin.load(tmp_path / "wrong.gguf")


def test_weights_that_do_not_sum_to_one(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Those of the experts of Qwen 3.5 always do; a file may say so."""
    for said in (True, False):
        path = tmp_path / f"{said}.gguf"
        gguf_files.write(
            path, folder("qwen3_5_moe"), "qwen35moe", change=lambda w, s=said: w.add_expert_weights_norm(s)
        )
    jaxlin.load(tmp_path / "True.gguf")
    with pytest.raises(ConfigError, match="expert_weights_norm"):
        jaxlin.load(tmp_path / "False.gguf")


def test_every_architecture_is_written_here() -> None:
    from jaxlin.loading.registry import GGUF_ARCHITECTURES

    assert {arch for arch, _ in VARIANTS.values()} == set(GGUF_ARCHITECTURES)
