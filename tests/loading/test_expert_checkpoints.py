"""Checkpoints of mixtures of experts written by transformers, rewritten by hand as other programs write them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracle
import pytest
import tiny
import torch
from quantised_files import FORMATS, FP8, quantise, scaled
from safetensors.torch import load_file, save_file

import jaxlin
from jaxlin.common.errors import CheckpointError
from jaxlin.loading.shapes import shapes_of
from jaxlin.quantized import Scaled

LATENT = {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
SIZES = {"moe_intermediate_size": 64, "first_k_dense_replace": 1, "num_key_value_heads": 4}
DEEPSEEK = tiny.Variant("DeepseekV3Config", {**tiny.VARIANTS["deepseek_v3"].options, **tiny.SIZES, **LATENT, **SIZES})


FP8_OF_A_ROUTER = (scaled("weight_scale_inv", (8, 32), "grid"), {**FP8, "weight_block_size": [8, 32]}, Scaled)
"""Blocks that are not larger than the matrix of a router."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek V3 with experts in its second layer, each in tensors of its own."""
    return tiny.build(DEEPSEEK, tmp_path_factory.mktemp("deepseek"))


def rewritten(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(folder, target)
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    return target


def fuse(tensors: dict[str, torch.Tensor]) -> None:
    """All experts of a layer in one tensor, rows of gate before those of up."""
    for module in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:
        experts = f"{module}.experts"
        count = sum(name.startswith(experts) and name.endswith(".up_proj.weight") for name in tensors)
        gate, up, down = (
            torch.stack([tensors.pop(f"{experts}.{e}.{part}_proj.weight") for e in range(count)])
            for part in ("gate", "up", "down")
        )
        tensors |= {f"{experts}.gate_up_proj": torch.cat([gate, up], 1), f"{experts}.down_proj": down}


def assert_planned(path: Path, model: Any) -> None:
    """The plan knows each array of the model, and so its bytes."""
    planned = shapes_of(path, None, "float32", "gate")
    assert jax.tree.structure(planned.layers) == jax.tree.structure(model.layers)
    for shape, found in zip(jax.tree.leaves(planned), jax.tree.leaves(model), strict=True):
        assert (shape.shape, shape.dtype) == (found.shape, found.dtype)


def logits(model: Any) -> np.ndarray:
    """At a prompt of twenty tokens."""
    return np.asarray(model.unembed(jax.jit(lambda model, x: model(x))(model, model.embed(tiny.IDS))))


def test_fused(folder: Path, tmp_path: Path) -> None:
    """Both layouts are one model, to the bit."""
    expected, _ = jaxlin.load(folder)
    found, _ = jaxlin.load(rewritten(folder, tmp_path / "fused", fuse))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert_planned(tmp_path / "fused", found)


def test_qwen3_5_of_the_hub(tmp_path: Path) -> None:
    """Experts are fused there, and layers that draft tokens, with experts of their own, are left out."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        fuse(tensors)
        tensors["mtp.layers.0.mlp.experts.down_proj"] = torch.ones(6, 64, 16)

    source = tiny.build(tiny.VARIANTS["qwen3_5_moe"], tmp_path / "source")
    expected, _ = jaxlin.load(source)
    found, _ = jaxlin.load(rewritten(source, tmp_path / "hub", change))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert_planned(tmp_path / "hub", found)


def test_llama4_taken_apart(tmp_path: Path) -> None:
    """Llama 4's experts are fused and transposed; programs that quantise them store each by itself."""

    def take_apart(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".experts.gate_up_proj")]:
            module = name.removesuffix(".gate_up_proj")
            gate_up, down = tensors.pop(name), tensors.pop(f"{module}.down_proj")
            for e in range(len(down)):
                gate, up = gate_up[e].T.chunk(2)
                parts = {"gate": gate.clone(), "up": up.clone(), "down": down[e].T.clone()}
                tensors |= {f"{module}.{e}.{part}_proj.weight": value for part, value in parts.items()}

    source = tiny.build(tiny.VARIANTS["llama4_text, interleaved"], tmp_path / "source")
    expected, _ = jaxlin.load(source)
    found, _ = jaxlin.load(rewritten(source, tmp_path / "apart", take_apart))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert_planned(tmp_path / "apart", found)


@pytest.mark.parametrize("form", ["nf4, nested", "fp8", "gptq, reordered", "awq"])
def test_packed(form: str, folder: Path, tmp_path: Path, x64: None) -> None:
    """Each expert stays packed; the map is that of the dequantised model, exactly; the plan is right to the byte."""
    write, config, kind = {**FORMATS, "fp8": FP8_OF_A_ROUTER}[form]
    config = {**config, "bnb_4bit_use_double_quant": True} if "nested" in form else config
    path = quantise(folder, tmp_path, write, config)
    model, _ = jaxlin.load(path, linearize=True, dtype="float64")
    experts = model.layers.parts[1][0].mlp.experts
    assert isinstance(experts.down_proj.weight.get_value(), kind)
    np.testing.assert_allclose(logits(model), oracle.logits(path / "values", tiny.IDS, torch.float64), atol=1e-10)
    assert jaxlin.local_map(model, model.embed(tiny.IDS)).residual <= 1e-13
    planned: Any = shapes_of(path, None, "float32", "gate")
    for part in (lambda model: model.layers.parts[1][0].mlp, lambda model: model.layers.parts[0][0].mlp):
        for shape, found in zip(jax.tree.leaves(part(planned)), jax.tree.leaves(part(model)), strict=True):
            assert (shape.shape, shape.dtype) == (found.shape, found.dtype)


def missing(tensors: dict[str, torch.Tensor]) -> None:
    """One matrix of an expert is not there."""
    del tensors["model.layers.1.mlp.experts.5.up_proj.weight"]


def narrow(tensors: dict[str, torch.Tensor]) -> None:
    """One expert has fewer hidden features."""
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    tensors[name] = tensors[name][:32]


def mixed(tensors: dict[str, torch.Tensor]) -> None:
    """Some matrices are fused, others are not."""
    single = {name: tensor for name, tensor in tensors.items() if re.search(r"experts\.\d+\.down", name)}
    fuse(tensors)
    tensors |= single
    del tensors["model.layers.1.mlp.experts.down_proj"]


def transposed(tensors: dict[str, torch.Tensor]) -> None:
    """As Llama 4's, which this type is not."""
    fuse(tensors)
    for name in ("gate_up_proj", "down_proj"):
        tensors[f"model.layers.1.mlp.experts.{name}"] = tensors[f"model.layers.1.mlp.experts.{name}"].transpose(1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            missing,
            r"expected a tensor model.layers.1.mlp.experts.5.up_proj.weight of shape \(64, 128\), .*; found none",
        ),
        (narrow, r"experts.5.up_proj.weight: expected shape \(64, 128\); found \(32, 128\)"),
        (
            mixed,
            r"in one layout; found some as mlp.experts.\{expert\}.down_proj.weight and some as mlp.experts.gate_up",
        ),
        (transposed, r"experts.down_proj: expected shape \(8, 128, 64\); found \(8, 64, 128\)"),
    ],
)
def test_bad_tensors(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        jaxlin.load(rewritten(folder, tmp_path / "bad", change))


def test_more_experts_than_memory(folder: Path, tmp_path: Path) -> None:
    """The number is refused for the tensors that are not there, before any is read."""
    path = rewritten(folder, tmp_path / "many", lambda tensors: None)
    config = json.loads((path / "config.json").read_text())
    key = next(key for key in ("n_routed_experts", "num_local_experts", "num_experts") if key in config)
    many = {**config, key: 2**16}
    (path / "config.json").write_text(json.dumps({**many, "moe_intermediate_size": 2**30}))
    with pytest.raises(CheckpointError, match=r"experts.0.down_proj.weight: expected shape \(128, 1073741824\)"):
        jaxlin.load(path)
    (path / "config.json").write_text(json.dumps(many))
    with pytest.raises(CheckpointError, match=r"tensor model.layers.1.mlp.experts.8.down_proj.weight of shape"):
        jaxlin.load(path)
