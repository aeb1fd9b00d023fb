"""The memory plan knows every array of a checkpoint of every type, of mixed dtypes and in FP8 whose blocks rows cut."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import jaxlin
from jaxlin.loading.shapes import shapes_of

Tensors = dict[str, torch.Tensor]

NAMES = list({variant.config: name for name, variant in reversed(tiny.VARIANTS.items())}.values())
"""One variant of each type."""

BLOCK = (24, 16)
"""Of which no tensor has whole ones alone."""

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
FUSED = (".experts.gate_up_proj", ".experts.down_proj")
TRANSPOSED = ("llama4", "gpt_oss")
"""Types whose fused experts are not quantised before they are taken apart."""


def mixed(tensors: Tensors, config: dict[str, object]) -> Tensors:
    """Matrices in bfloat16, and vectors in float32, as some files have them."""
    config["dtype"] = "bfloat16"
    return {name: a.bfloat16() if a.ndim > 1 else a.float() for name, a in tensors.items()}


def in_fp8(tensors: Tensors, config: dict[str, object]) -> Tensors:
    """Matrices of linear layers in FP8; routers, convolutions and embeddings are not."""
    config["quantization_config"] = FP8
    packed = {}
    for name, a in mixed(tensors, config).items():
        is_fused = name.endswith(FUSED) and not str(config["model_type"]).startswith(TRANSPOSED)
        is_linear = name.endswith(".weight") and a.ndim == 2 and ".layers." in name
        if is_fused or (is_linear and not name.endswith((".gate.weight", ".router.weight"))):
            grid = [-(-size // part) for size, part in zip(a.shape[-2:], BLOCK, strict=True)]
            packed[name] = torch.zeros(a.shape, dtype=torch.float8_e4m3fn)
            packed[f"{name}_scale_inv"] = torch.ones(*a.shape[:-2], *grid)
        else:
            packed[name] = a
    return packed


@pytest.mark.parametrize("change", [mixed, in_fp8])
@pytest.mark.parametrize("name", NAMES)
def test_every_array(
    name: str,
    change: Callable[[Tensors, dict[str, object]], Tensors],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "any"))
    config = json.loads((folder / "config.json").read_text())
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    save_file(change(tensors, config), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    planned, (model, _) = shapes_of(folder, None, "float32", "gate"), jaxlin.load(folder)
    assert jax.tree.structure(planned.layers) == jax.tree.structure(model.layers)
    for shape, array in zip(jax.tree.leaves(planned), jax.tree.leaves(model), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
