"""Mixtures in the packed formats that the hub has them in, each with what its files leave in bfloat16."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracle
import pytest
import tiny
import torch
from quantised_files import AWQ, BNB4, COMPRESSED, FORMATS, FP8, GPTQ, Write, packed_config
from safetensors.torch import load_file, save_file

import jaxlin
from jaxlin.loading.shapes import shapes_of
from jaxlin.quantized import Affine, FourBit, PackedMatrix, Scaled

Tensors = dict[str, torch.Tensor]

EXPERTS = {"moe_intermediate_size": 64, "num_hidden_layers": 2}
LATENT = {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
SOURCES = {
    "qwen3_moe": tiny.Variant(
        "Qwen3MoeConfig", {**tiny.VARIANTS["qwen3_moe"].options, **tiny.SIZES, **EXPERTS}, stored=torch.bfloat16
    ),
    "mistral4": tiny.Variant(
        "Mistral3Config",
        {
            "text_config": {
                **{**tiny.MISTRAL4, "model_type": "mistral4", "intermediate_size": 64},
                **{**tiny.SIZES, **LATENT, **EXPERTS},
            },
            "vision_config": tiny.PIXTRAL,
            "image_token_index": 121,
        },
        stored=torch.bfloat16,
    ),
    "deepseek_v3": tiny.Variant(
        "DeepseekV3Config",
        {**tiny.LATENT, **tiny.SIZES, **LATENT, **EXPERTS, "first_k_dense_replace": 1},
        stored=torch.bfloat16,
    ),
    "llama4": tiny.Variant(
        "Llama4TextConfig",
        {**tiny.LLAMA4, **tiny.SIZES, "intermediate_size": 64, "intermediate_size_mlp": 64},
        stored=torch.bfloat16,
    ),
}

CHANNEL = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
STATIC = {**FP8, "activation_scheme": "static", "weight_block_size": None}
UNTOUCHED = {"ignore": ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:vision_model.*"]}

Case = tuple[str, Write | None, dict[str, Any], str, type[PackedMatrix]]
CASES: dict[str, Case] = {
    "Qwen3-30B-A3B-FP8": (
        *("qwen3_moe", FORMATS["fp8"][0]),
        {**FP8, "modules_to_not_convert": ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(2))]},
        *("mlp.gate.", Scaled),
    ),
    "Qwen3-30B-A3B-GPTQ-Int4": ("qwen3_moe", FORMATS["gptq"][0], GPTQ, "mlp.gate.", Affine),
    "Qwen3-30B-A3B-AWQ": (
        *("qwen3_moe", FORMATS["awq"][0]),
        *({**AWQ, "modules_to_not_convert": ["gate"]}, "mlp.gate.", Affine),
    ),
    "Qwen3-30B-A3B-bnb-4bit": (
        *("qwen3_moe", FORMATS["nf4, nested, bfloat16"][0]),
        *({**BNB4, "bnb_4bit_use_double_quant": True}, "none", FourBit),
    ),
    "Mistral-Small-4": (
        *("mistral4", None),
        {**STATIC, "modules_to_not_convert": ["vision_tower", "multi_modal_projector", "lm_head"]},
        *("mlp.gate.", Scaled),
    ),
    "DeepSeek-V3": ("deepseek_v3", FORMATS["fp8"][0], {**FP8, "fmt": "e4m3"}, "mlp.gate.", Scaled),
    "Llama-4-Scout-FP8-dynamic": (
        *("llama4", FORMATS["compressed-tensors"][0]),
        {**COMPRESSED, **UNTOUCHED, "config_groups": {"group_0": {"weights": CHANNEL, "targets": ["Linear"]}}},
        *("self_attn|router", Scaled),
    ),
    "Llama-4-Scout-w4a16": (
        *("llama4", FORMATS["pack-quantized"][0]),
        {**packed_config(group_size=32), **UNTOUCHED},
        *("self_attn|router", Affine),
    ),
}
"""The checkpoint, what quantises a weight, the config, parts of the names of what is left, and the matrix in memory."""

OTHER_CASES: dict[str, Case] = {
    "DeepSeek-V3-AWQ": (
        *("deepseek_v3", FORMATS["awq"][0]),
        *({**AWQ, "modules_to_not_convert": ["gate"]}, "mlp.gate.", Affine),
    ),
    "Llama-4-Scout-bnb-4bit": (
        *("llama4", FORMATS["nf4, nested, bfloat16"][0]),
        *({**BNB4, "bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": ["router"]}, "router", FourBit),
    ),
}
"""Whose matrices are the same as those of another case, so that only logits are compared."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one of `SOURCES`."""
    return tiny.built_once(SOURCES, lambda: tmp_path_factory.mktemp("source"))


def one_scale(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """FP8 with one scale for a matrix, and of fused experts one for gate and one for up of each."""
    fused = weight.ndim == 3
    halves = 2 if name.endswith("gate_up_proj") else 1
    grid = weight.reshape(*weight.shape[:-2], halves, -1, weight.shape[-1])
    scale = grid.abs().amax(dim=(-2, -1), keepdim=True).float() / 448
    codes = (grid.float() / scale).to(torch.float8_e4m3fn)
    stored = scale.reshape(*weight.shape[:-2], halves, 1) if fused else scale.reshape(())
    values = (codes.float() * scale).reshape(weight.shape)
    return {name: codes.reshape(weight.shape), f"{name}_scale_inv": stored}, values


def taken_apart(tensors: Tensors) -> Tensors:
    """Llama 4's experts, ``[E, in, out]``, as what quantises them stores them: each in its own tensors."""
    apart: Tensors = {}
    for name, values in tensors.items():
        module, _, projection = name.rpartition(".")
        if not module.endswith(".experts"):
            apart[name] = values
            continue
        for e, matrix in enumerate(values.transpose(1, 2)):
            names = ("gate_proj", "up_proj") if projection == "gate_up_proj" else (projection,)
            parts = matrix.chunk(len(names))
            apart |= {f"{module}.{e}.{part}.weight": each for part, each in zip(names, parts, strict=True)}
    return apart


def put_together(folder: Path) -> None:
    """Store Llama 4's experts in `folder` as transformers reads them, the inverse of `taken_apart`."""
    tensors = load_file(folder / "model.safetensors")
    experts: dict[str, list[torch.Tensor]] = {}
    for name in sorted(name for name in tensors if ".experts." in name):
        module, _, projection, _ = name.rsplit(".", 3)
        experts.setdefault(f"{module}.{projection}", []).append(tensors.pop(name).T)
    stacks = {name: torch.stack(matrices) for name, matrices in experts.items()}
    for name in [name for name in stacks if name.endswith("gate_proj")]:
        both = stacks.pop(name), stacks.pop(name.replace("gate_proj", "up_proj"))
        stacks[name.replace("gate_proj", "gate_up_proj")] = torch.cat(both, dim=-1)
    contents = {**tensors, **{name: stack.contiguous() for name, stack in stacks.items()}}
    save_file(contents, folder / "model.safetensors", {"format": "pt"})


def packed(source: Path, folder: Path, case: Case) -> Path:
    """Write the packed checkpoint, and into ``folder/values`` one with the values that it stands for."""
    name, write, quantization, left, _ = case
    tensors = load_file(source / "model.safetensors")
    tensors = taken_apart(tensors) if name == "llama4" else tensors
    contents: Tensors = {}
    values: Tensors = {}
    for tensor, weight in tensors.items():
        in_text = ".layers." in tensor and "vision" not in tensor
        is_matrix = in_text and (".experts." in tensor or (weight.ndim == 2 and tensor.endswith(".weight")))
        if not is_matrix or any(part in tensor for part in left.split("|")):
            contents[tensor] = values[tensor] = weight
            continue
        parts, values[tensor] = (write or one_scale)(tensor, weight.float().contiguous())
        contents |= {key: part.contiguous() for key, part in parts.items()}
    config = json.loads((source / "config.json").read_text())
    for path, part, extra in (
        (folder, contents, {"quantization_config": quantization}),
        (folder / "values", values, {}),
    ):
        path.mkdir(exist_ok=True)
        save_file({key: a.contiguous() for key, a in part.items()}, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps({**config, **extra}))
    return folder


@jax.jit
def unpacked(matrix: Any) -> jax.Array:
    """The values in float32."""
    return matrix[...].astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_every_matrix(name: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    """Each stays packed, and unpacks to the values that the format's own arithmetic gives; the plan knows which do."""
    case = CASES[name]
    folder = packed(source(case[0]), tmp_path / "packed", case)
    (model, _), (expected, _) = jaxlin.load(folder), jaxlin.load(folder / "values")
    found, plain = (
        jax.tree.leaves(each, is_leaf=lambda leaf: isinstance(leaf, PackedMatrix)) for each in (model, expected)
    )
    kinds = [type(leaf) for leaf in found]
    assert case[4] in kinds
    for ours, theirs in zip(found, plain, strict=True):
        np.testing.assert_array_equal(unpacked(ours), unpacked(theirs))
    planned = shapes_of(folder, None, "float32", "gate")
    assert jax.tree.structure(planned.layers) == jax.tree.structure(model.layers)
    for shape, array in zip(jax.tree.leaves(planned), jax.tree.leaves(model), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize(
    "name", ["Mistral-Small-4", "DeepSeek-V3", "Llama-4-Scout-FP8-dynamic", "Llama-4-Scout-w4a16", *OTHER_CASES]
)
def test_logits(name: str, source: Callable[[str], Path], tmp_path: Path, x64: None) -> None:
    """Those of the values, of one case of each layout of experts and each matrix in memory."""
    case = {**CASES, **OTHER_CASES}[name]
    folder = packed(source(case[0]), tmp_path / "packed", case)
    model, _ = jaxlin.load(folder, dtype="float64")
    x = model.embed(tiny.IDS[:5])
    logits = model.unembed(jax.jit(lambda model, x: model(x))(model, x))
    if case[0] == "llama4":
        put_together(folder / "values")
    np.testing.assert_allclose(logits, oracle.logits(folder / "values", tiny.IDS[:5], torch.float64), atol=1e-10)


def test_logits_and_map(source: Callable[[str], Path], tmp_path: Path, x64: None) -> None:
    """Logits are those of the values, and the map reconstructs them."""
    folder = packed(source("qwen3_moe"), tmp_path / "packed", CASES["Qwen3-30B-A3B-FP8"])
    model, _ = jaxlin.load(folder, dtype="float64")
    x = model.embed(tiny.IDS)
    logits = model.unembed(jax.jit(lambda model, x: model(x))(model, x))
    np.testing.assert_allclose(logits, oracle.logits(folder / "values", tiny.IDS, torch.float64), atol=1e-10)
    assert jaxlin.local_map(model, x).residual <= 1e-13
