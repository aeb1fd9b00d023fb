"""Checkpoints of mixtures of experts written by transformers, rewritten by hand as other programs write them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tiny
import torch
from safetensors.torch import load_file, save_file

import jaxlin
from jaxlin.loading.plan import shapes_of


def rewritten(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(folder, target)
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    return target


def assert_planned(path: Path, model: Any) -> None:
    """The plan knows each array of the model, and so its bytes."""
    planned = shapes_of(path, None, "float32", "gate")
    assert jax.tree.structure(planned.layers) == jax.tree.structure(model.layers)
    for shape, found in zip(jax.tree.leaves(planned), jax.tree.leaves(model), strict=True):
        assert (shape.shape, shape.dtype) == (found.shape, found.dtype)


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
