"""The memory plan takes what a file may choose for itself, such as the dtype of scales, from its headers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import jax
import pytest
import torch
from quantised_files import BNB4, COMPRESSED, FORMATS, GPTQ, Write, damaged, gptq, packed_config, quantise, scaled

import jaxlin
from jaxlin.common.errors import CheckpointError
from jaxlin.loading.shapes import shapes_of

Tensors = dict[str, torch.Tensor]


def assert_planned(folder: Path) -> None:
    """Each array of the plan has the shape and dtype, and so the bytes, of that of the loaded model."""
    planned, (model, _) = shapes_of(folder, None, "float32", "gate"), jaxlin.load(folder)
    assert jax.tree.structure(planned.layers) == jax.tree.structure(model.layers)
    for shape, array in zip(jax.tree.leaves(planned), jax.tree.leaves(model), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize("dtypes", [("float16", "bfloat16"), ("bfloat16", "float16")], ids=" of ".join)
@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq", "pack-quantized"])
def test_scales_of_another_dtype(
    form: str, dtypes: tuple[str, str], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Than the config has: in one layer of as many bytes, in the other of float32."""
    scales, dtype = dtypes
    folder = quantise(checkpoint("llama, wide"), tmp_path, *FORMATS[form][:2])

    def change(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith((".weight_scale", ".scales")):
                tensors[name] = tensors[name].to(torch.float32 if ".layers.1." in name else getattr(torch, scales))

    damaged(folder, change)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    assert_planned(folder)


def blocks_of_32(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """NF4, with other blocks than bitsandbytes' default."""
    codes, state = bnb.quantize_4bit(weight, quant_type="nf4", blocksize=32)
    parts = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {name: codes, **parts}, bnb.dequantize_4bit(codes, state)


def two_kinds(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Layers of different 8-bit floats, with one scale for a matrix."""
    tensors, values = scaled("weight_scale", (0, 0), "scalar")(name, weight)
    if ".layers.1." in name:
        tensors[name] = tensors[name].to(torch.float8_e5m2)
    return tensors, values


TENSOR = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
CHOICES: dict[str, tuple[Write, dict[str, Any]]] = {
    "double quantisation": FORMATS["nf4, nested, bfloat16"][:2],
    "blocks": (blocks_of_32, BNB4),
    "one scale, e5m2": (two_kinds, {**COMPRESSED, "config_groups": {"group_0": {"weights": TENSOR}}}),
    "gptq, static groups": (gptq(32), {**GPTQ, "desc_act": True, "static_groups": True}),
    "pack-quantized, in order": (
        FORMATS["pack-quantized, reordered"][0],
        packed_config(group_size=32, symmetric=False),
    ),
}


@pytest.mark.parametrize("name", ["llama, wide", "phi3, wide"])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_a_config_does_not_say(choice: str, name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Of whole weights, and of rows of fused ones."""
    assert_planned(quantise(checkpoint(name), tmp_path, *CHOICES[choice]))


def test_missing_scales(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = quantise(checkpoint("llama, wide"), tmp_path, *FORMATS["pack-quantized"][:2])
    damaged(folder, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight_scale"))
    with pytest.raises(CheckpointError, match=r"expected a tensor .*up_proj.weight_scale of F16 .* needs; found none"):
        jaxlin.memory_plan(folder, tokens=5)
