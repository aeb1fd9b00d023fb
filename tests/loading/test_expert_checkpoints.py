"""Checkpoints of mixtures of experts written by transformers, rewritten by hand as other programs write them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import jax
import numpy as np
import oracle
import pytest
import tiny
import torch
from quantised_files import FORMATS, quantise
from safetensors.torch import load_file, save_file

import jaxlin
from jaxlin.common.errors import CheckpointError
from jaxlin.loading.plan import shapes_of

MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
QWEN3 = tiny.Variant("Qwen3MoeConfig", {**tiny.GQA, **tiny.SIZES, **MOE, "head_dim": 32, "mlp_only_layers": [0]})
QWEN2 = tiny.Variant(
    "Qwen2MoeConfig", {**tiny.GQA, **tiny.SIZES, **MOE, "shared_expert_intermediate_size": 64}, biases=True
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen 3 with experts in its second layer, each in tensors of its own."""
    return tiny.build(QWEN3, tmp_path_factory.mktemp("qwen3_moe"))


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
    layer = "model.layers.1.mlp.experts."
    gate, up, down = (
        torch.stack([tensors.pop(f"{layer}{e}.{part}_proj.weight") for e in range(8)])
        for part in ("gate", "up", "down")
    )
    tensors |= {f"{layer}gate_up_proj": torch.cat([gate, up], 1), f"{layer}down_proj": down}


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


@pytest.mark.parametrize("form", ["nf4, nested", "int8", "fp8", "compressed-tensors", "gptq, reordered", "awq"])
def test_packed(form: str, folder: Path, tmp_path: Path, x64: None) -> None:
    """Each expert stays packed; the map is that of the dequantised model, exactly; the plan is right to the byte."""
    write, config, kind = FORMATS[form]
    config = {**config, "bnb_4bit_use_double_quant": True} if "nested" in form else config
    path = quantise(folder, tmp_path, write, config)
    model, _ = jaxlin.load(path, linearize=True, dtype="float64")
    experts = model.layers[1].mlp.experts if hasattr(model.layers, "layout") else model.layers.mlp.experts
    assert isinstance(jax.tree.leaves(experts.down_proj, is_leaf=lambda node: isinstance(node, kind))[0], kind)
    np.testing.assert_allclose(logits(model), oracle.logits(path / "values", tiny.IDS, torch.float64), atol=1e-10)
    assert jaxlin.local_map(model, model.embed(tiny.IDS)).residual <= 1e-13
    assert_planned(path, model)


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
        (missing, r"expected a tensor model.layers.1.mlp.experts.5.up_proj.weight of shape \(64, 128\); found none"),
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
    (path / "config.json").write_text(json.dumps({**config, "num_experts": 2**16, "moe_intermediate_size": 2**30}))
    with pytest.raises(CheckpointError, match=r"experts.0.down_proj.weight: expected shape \(128, 1073741824\)"):
        jaxlin.load(path)
    (path / "config.json").write_text(json.dumps({**config, "num_experts": 2**16}))
    with pytest.raises(CheckpointError, match=r"tensor model.layers.1.mlp.experts.8.down_proj.weight of shape"):
        jaxlin.load(path)


KINDS: dict[str, Callable[[str], str]] = {
    "F32": lambda name: "F32",
    "Q8_0": lambda name: "Q8_0",
    "Q4_K_M": lambda name: "Q6_K" if "layers.0" in name and "down" in name else "Q4_K" if "experts" in name else "Q8_0",
}


@pytest.mark.parametrize(("arch", "kind"), [("qwen3moe", "F32"), ("qwen3moe", "Q8_0"), ("qwen2moe", "Q4_K_M")])
def test_gguf(arch: str, kind: str, tmp_path: Path, x64: None) -> None:
    """Against transformers with what the gguf library decodes; the plan from the header is right to the byte."""
    variant = QWEN3 if arch == "qwen3moe" else QWEN2
    options = {**variant.options, "norm_topk_prob": arch == "qwen3moe", "mlp_only_layers": []}
    if kind == "Q4_K_M":
        options |= {"hidden_size": 256, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}
        options |= {"intermediate_size": 256}
    source = tiny.build(tiny.Variant(variant.config, options), tmp_path / "source")
    exact = gguf_files.write(tmp_path / "m.gguf", source, arch, KINDS[kind])
    model, _ = jaxlin.load(tmp_path / "m.gguf", dtype="float64")
    np.testing.assert_allclose(logits(model), oracle.logits(exact, tiny.IDS, torch.float64), atol=1e-10)
    assert_planned(tmp_path / "m.gguf", model)
