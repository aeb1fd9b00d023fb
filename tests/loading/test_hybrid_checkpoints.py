"""Checkpoints of hybrids written by transformers, packed, or rewritten by hand as other programs write them."""

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
from quantised_files import FORMATS, FP8, quantise, scaled
from test_expert_checkpoints import assert_planned, logits, rewritten

import jaxlin
from jaxlin.common.errors import CheckpointError, ConfigError
from jaxlin.quantized import Scaled

HEADS = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
"""So that rows of the delta rule's tensors are whole blocks of 64 values, and their columns whole words."""

PACKED = {
    "qwen3_5": tiny.Variant(
        "Qwen3_5TextConfig",
        {**tiny.HYBRID, **HEADS, "intermediate_size": 128, "num_hidden_layers": 2, "full_attention_interval": 2},
    ),
    "qwen3_next": tiny.Variant(
        "Qwen3NextConfig",
        {
            **{**tiny.HYBRID_NEXT, **HEADS, "intermediate_size": 128, "num_hidden_layers": 2},
            **{"full_attention_interval": 2, "mlp_only_layers": [0, 1]},
        },
    ),
}
FP8_OF_STRENGTHS = (scaled("weight_scale_inv", (8, 32), "grid"), {**FP8, "weight_block_size": [8, 32]}, Scaled)
"""Blocks that are not larger than the matrices of strengths and decays."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the checkpoint of one of `PACKED`, or of `tiny.VARIANTS`."""
    packed = {f"{name}, packed": variant for name, variant in PACKED.items()}
    return tiny.built_once({**tiny.VARIANTS, **packed}, lambda: tmp_path_factory.mktemp("hybrid"))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("qwen3_5", form) for form in ("nf4, nested", "fp8", "gptq, reordered", "awq")),
        *(("qwen3_next", form) for form in ("nf4, nested", "fp8", "awq")),
    ],
)
def test_packed(name: str, form: str, folder: Callable[[str], Path], tmp_path: Path, x64: None) -> None:
    """Rows of a fused tensor stay packed, in whichever order; the map is that of the dequantised model, exactly."""
    write, config, kind = {**FORMATS, "fp8": FP8_OF_STRENGTHS}[form]
    config = {**config, "bnb_4bit_use_double_quant": True} if "nested" in form else config
    path = quantise(folder(f"{name}, packed"), tmp_path, write, config)
    model, _ = jaxlin.load(path, linearize=True, dtype="float64")
    for projection in ("q_proj", "v_proj", "g_proj", "b_proj", "o_proj"):
        weight = getattr(model.layers.parts[0][0].linear_attn, projection).weight
        assert isinstance(weight.get_value(), kind), projection
    np.testing.assert_allclose(logits(model), oracle.logits(path / "values", tiny.IDS, torch.float64), atol=1e-10)
    assert jaxlin.local_map(model, model.embed(tiny.IDS)).residual <= 1e-13
    assert_planned(path, model)


@pytest.mark.parametrize("name", ["qwen3_5_text, interval", "qwen3_next", "olmo_hybrid"])
def test_bfloat16(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Weights of 16 bits are widened where they are used, as transformers widens them when it loads."""

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {key: value.bfloat16() for key, value in tensors.items()}

    path = rewritten(folder(name), tmp_path / "narrow", narrow)
    model, _ = jaxlin.load(path)
    np.testing.assert_allclose(logits(model), oracle.logits(path, tiny.IDS, torch.float32), atol=3e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} <= {np.dtype("uint16"), jax.numpy.bfloat16.dtype}


CHANNELS = {"q_conv1d": 16, "k_conv1d": 16, "v_conv1d": 48}


@pytest.mark.parametrize("channels", [CHANNELS, {"conv1d": 80}, dict.fromkeys(CHANNELS, 1)], ids=["hub", "one", "odd"])
def test_convolutions_of_olmo_hybrid(channels: dict[str, int], folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Where the hub cuts their channels, where they are not cut, and anywhere else: transformers cuts into thirds."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(name for name in tensors if "v_conv1d" in name):
            parts = [tensors.pop(name.replace("v_conv1d", part)) for part in CHANNELS]
            assert [len(part) for part in parts] == [27, 27, 26]
            stops = np.cumsum([*channels.values()])[:-1].tolist()
            cut = torch.cat(parts).tensor_split(stops)
            tensors |= {name.replace("v_conv1d", part): a.clone() for part, a in zip(channels, cut, strict=True)}

    expected, _ = jaxlin.load(folder("olmo_hybrid"))
    path = rewritten(folder("olmo_hybrid"), tmp_path / "cut", change)
    model, _ = jaxlin.load(path)
    jax.tree.map(np.testing.assert_array_equal, model, expected)
    assert_planned(path, model)


def test_convolutions_of_too_few_channels(folder: Callable[[str], Path], tmp_path: Path) -> None:
    name = "model.layers.0.linear_attn.v_conv1d.weight"
    path = rewritten(
        folder("olmo_hybrid"), tmp_path / "few", lambda tensors: tensors.update({name: tensors[name][1:].clone()})
    )
    with pytest.raises(CheckpointError, match=r"k_conv1d.weight: expected shape \(16, 4\); found \(27, 1, 4\)"):
        jaxlin.load(path)


def test_olmo_hybrid_as_its_modules_are_called(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Norms by their places in transformers."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(tensors):
            if "_layer_norm." in name:
                place = name.replace(".attention_layer_norm.", ".input_layernorm.")
                place = place.replace(".feedforward_layer_norm.", ".post_attention_layernorm.")
                tensors[place] = tensors.pop(name)

    expected, _ = jaxlin.load(folder("olmo_hybrid"))
    model, _ = jaxlin.load(rewritten(folder("olmo_hybrid"), tmp_path / "modules", change))
    jax.tree.map(np.testing.assert_array_equal, model, expected)


def with_config(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other keys in its config."""
    path = rewritten(source, target, lambda tensors: None)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


@pytest.mark.parametrize("name", ["qwen3_5_text, interval", "qwen3_next", "olmo_hybrid"])
def test_layer_types_unlike_the_tensors(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The layer is named, and what the config makes of it, before any tensor is read."""
    types = json.loads((folder(name) / "config.json").read_text())["layer_types"]
    types[:2] = "full_attention", "linear_attention"
    path = with_config(folder(name), tmp_path / "turned", layer_types=types)
    message = r"tensor model\.layers\.0\..* as the config has layer 0 of the kind full_attention; found none"
    with pytest.raises(CheckpointError, match=message):
        jaxlin.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["linear_attention"] * 2}, "layers of linear_attention and of full_attention"),
        ({"layer_types": ["linear_attention"]}, "2 of full_attention or linear_attention"),
        ({"rope_parameters": {"rope_type": None}}, "rope_type"),
        ({"linear_num_value_heads": 3}, "a multiple of linear_num_key_heads"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        jaxlin.load(with_config(folder("olmo_hybrid"), tmp_path / "bad", **changes))
