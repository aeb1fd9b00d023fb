"""Files of Gemma 3n and 4 as people have them: in 16 bits, packed, and with tensors that no layer reads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import margins
import numpy as np
import oracle
import pytest
import tiny
import torch
from quantised_files import FORMATS, damaged, quantise

import jaxlin
from jaxlin.models.gemma4_gguf import GEMMA4 as GEMMA4_GGUF
from jaxlin.nn import PromptError

WIDE = {"hidden_size_per_layer_input": 32}
GEMMA4 = tiny.Variant("Gemma4TextConfig", {**tiny.PER_LAYER, **WIDE})
GEMMA3N = tiny.Variant("Gemma3nTextConfig", {**tiny.GEMMA3N, **WIDE, "laurel_rank": 32})
EXPERTS = tiny.Variant(
    "Gemma4TextConfig", {**tiny.GEMMA4, **tiny.K_EQ_V, **tiny.GEMMA4_EXPERTS, "moe_intermediate_size": 32}, seed=4
)
VARIANTS = {"gemma4": GEMMA4, "gemma3n": GEMMA3N, "experts": EXPERTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one of `VARIANTS`."""
    return tiny.built_once(VARIANTS, lambda: tmp_path_factory.mktemp("checkpoint"))


def logits(model: jaxlin.Decoder) -> np.ndarray:
    """Those of the prompt."""
    return np.asarray(model.unembed(jax.jit(lambda model, x: model(x))(model, model.embed(tiny.IDS))))


def take_apart(tensors: dict[str, torch.Tensor]) -> None:
    """Store each expert by itself, as programs do that quantise them."""
    for name in [name for name in tensors if name.endswith(".experts.gate_up_proj")]:
        module = name.removesuffix(".gate_up_proj")
        gate_up, down = tensors.pop(name), tensors.pop(f"{module}.down_proj")
        for e, (both, last) in enumerate(zip(gate_up, down, strict=True)):
            gate, up = both.chunk(2)
            tensors |= {
                f"{module}.{e}.{part}_proj.weight": w for part, w in (("gate", gate), ("up", up), ("down", last))
            }


def put_together(tensors: dict[str, torch.Tensor]) -> None:
    """The inverse."""
    for name in [name for name in tensors if name.endswith(".experts.0.gate_proj.weight")]:
        module, e, stacks = name.removesuffix(".0.gate_proj.weight"), 0, {"gate": [], "up": [], "down": []}
        while f"{module}.{e}.gate_proj.weight" in tensors:
            for part, stack in stacks.items():
                stack.append(tensors.pop(f"{module}.{e}.{part}_proj.weight"))
            e += 1
        gate, up, down = (torch.stack(stacks[part]) for part in ("gate", "up", "down"))
        tensors |= {f"{module}.gate_up_proj": torch.cat([gate, up], dim=1), f"{module}.down_proj": down}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("gemma4", "pack-quantized"),
        ("gemma4", "nf4, nested, bfloat16"),
        ("gemma4", "compressed-tensors"),
        ("gemma3n", "pack-quantized"),
        ("gemma3n", "nf4"),
        ("experts", "pack-quantized"),
    ],
)
def test_packed(name: str, form: str, folder: Callable[[str], Path], tmp_path: Path, x64: None) -> None:
    """The model is that of the unpacked weights, and its map is exact."""
    write, config, kind = FORMATS[form]
    source = damaged(copied(folder(name), tmp_path / "source"), take_apart)
    path = quantise(source, tmp_path / "packed", write, config, of=lambda weight: weight.shape[1] % 64 == 0)
    damaged(path / "values", put_together)
    assert margins.router_margin(path / "values", tiny.IDS) > margins.NOISE
    model, _ = jaxlin.load(path, linearize=True, dtype="float64")
    assert any(isinstance(node, kind) for node in jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, kind)))
    np.testing.assert_allclose(logits(model), oracle.logits(path / "values", tiny.IDS, torch.float64), atol=1e-10)
    assert jaxlin.local_map(model, model.embed(tiny.IDS)).residual <= 1e-13


def copied(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16(name: str, tmp_path: Path) -> None:
    """Weights of 16 bits are widened as transformers widens them."""
    path = tiny.build(replace(VARIANTS[name], stored=torch.bfloat16), tmp_path)
    assert margins.router_margin(path, tiny.IDS) > margins.NOISE
    model, _ = jaxlin.load(path)
    np.testing.assert_allclose(logits(model), oracle.logits(path, tiny.IDS, torch.float32), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["gemma4", "gemma3n"])
def test_tensors_that_no_layer_reads(
    name: str, folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files have keys and values of the last layers, which read those of earlier ones: transformers drops them."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        last = max(int(key.split(".")[2]) for key in tensors if ".layers." in key)
        for part in ("k_proj", "v_proj"):
            tensors[f"model.layers.{last}.self_attn.{part}.weight"] = torch.ones(32, 64)
        tensors[f"model.layers.{last}.self_attn.k_norm.weight"] = torch.ones(16)

    expected, _ = jaxlin.load(folder(name))
    path = damaged(copied(folder(name), tmp_path / "more"), add)
    found, _ = jaxlin.load(path)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert "left out 3 tensors" in caplog.text
    assert "that reads those of an earlier one" in caplog.text


def test_ids_and_embeddings_that_are_refused(folder: Callable[[str], Path]) -> None:
    """Per-layer embeddings need the ids of a prompt, and a row for each."""
    model, _ = jaxlin.load(folder("gemma3n"))
    with pytest.raises(PromptError, match="token ids besides; found an array without ids"):
        model(jnp.asarray(np.asarray(model.embed(tiny.IDS))))
    rows = model.config.vocab_size_per_layer_input
    model.config = replace(model.config, vocab_size=rows + 8)
    with pytest.raises(PromptError, match=rf"in 0..{rows - 1}, those the model has per-layer embeddings for; found"):
        model.embed([1, rows + 1])


@pytest.mark.parametrize(
    ("metadata", "config", "message"),
    [
        ({"attention.value_length_swa": 8}, {}, r"attention.value_length_swa: expected 16, .* found 8"),
        ({"rope.dimension_count_swa": 8}, {}, r"rope.dimension_count_swa: expected 16, .* found 8"),
        ({}, {"num_key_value_heads": [2, 4, 2, 2]}, r"attention.head_count_kv: .* found \[2, 4, 2, 2\]"),
        ({}, {"rope_theta": None}, "rope.freq_base: .* found none"),
        ({}, {"rope_scaling": {}}, r"a tensor rope_freqs.weight with 16 numbers, .* found \[\]"),
        ({}, {"rope_scaling": {"divisors": [1.0] * 15 + [8.0]}}, "a tensor rope_freqs.weight with 16 numbers"),
        ({}, {"rope_scaling": {"divisors": [1e30] + [1.0] * 15}}, "a tensor rope_freqs.weight with 16 numbers"),
        ({}, {"intermediate_size": [96, 96, 96, 192]}, r"feed_forward_length: .* last 2 layers; found \[96, 96"),
    ],
)
def test_metadata_of_gemma_4_that_does_not_fit(metadata: dict, config: dict, message: str) -> None:
    """What a file may say of its layers that Gemma 4's config.json cannot is refused, and names the metadata."""
    usual = {"attention.key_length_swa": 16, "attention.sliding_window": 6}
    usual["attention.sliding_window_pattern"] = [True, True, True, False]
    sizes = {"num_hidden_layers": 4, "head_dim": 32, "num_key_value_heads": 2, "intermediate_size": 96}
    sizes |= {"num_kv_shared_layers": 2, "rope_theta": 1e6, "rope_scaling": {"divisors": [1.0] * 4 + [1e30] * 12}}
    full = GEMMA4_GGUF.derive(usual, sizes)["rope_parameters"]["full_attention"]
    assert full["partial_rotary_factor"] == 0.25 + 2**-54
    changed = {key: value for key, value in {**sizes, **config}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        GEMMA4_GGUF.derive({**usual, **metadata}, changed)
