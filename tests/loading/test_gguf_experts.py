"""GGUF files with experts: three axes, packed along the last, the number of experts said twice."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from expert_files import EITHER, EXPERTS, FEATURES, LAYERS, WIDTH, ExpertDecoder, decoder, values
from gguf_files import packed

from jaxlin.checkpoint.gguf import GGUFFile, hf_name
from jaxlin.common.errors import CheckpointError, ConfigError
from jaxlin.loading import translated_gguf
from jaxlin.loading.parameters import read_parameters
from jaxlin.loading.translated_gguf import TranslatedGGUF
from jaxlin.porting import GGUFPort, Port
from jaxlin.porting.gguf_keys import RMS_NORM, check_gating, expert_keys
from jaxlin.quantized import MXFP4, GGUFBlocks, MixedStack

PORT = GGUFPort(
    model_type="qwen3_moe",
    keys={**RMS_NORM, **expert_keys()},
    parts={f"ffn_{name}_exps": f"experts.{name}_proj" for name in ("gate", "up", "down", "gate_up")},
    optional=("feed_forward_length",),
    read=("expert_gating_func",),
    derive=lambda metadata, config: check_gating(metadata, "softmax") or {},
)
NAMES = {"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"}

Kinds = Callable[[str, int], str]


@pytest.fixture(autouse=True)
def port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the architecture qwen3moe with `PORT`."""
    monkeypatch.setattr(translated_gguf, "gguf_port_for", lambda arch: PORT)


def write(path: Path, kinds: Kinds, *, fused: bool = False, experts: int = EXPERTS, gating: int | None = None) -> Any:
    """A GGUF file of the experts of `values`, and the values in it, by part and layer."""
    writer, exact = gguf.GGUFWriter(path, "qwen3moe"), {}
    writer.add_block_count(LAYERS)
    writer.add_context_length(9)
    writer.add_embedding_length(FEATURES)
    writer.add_head_count(1)
    writer.add_key_length(FEATURES)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(WIDTH)
    if gating is not None:
        writer.add_uint32("qwen3moe.expert_gating_func", gating)
    writer.add_tensor("token_embd.weight", np.ones((5, FEATURES), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(FEATURES, np.float32))
    stacks = {part: values()[name] for part, name in NAMES.items()}
    if fused:
        stacks = {"down": stacks["down"], "gate_up": np.concatenate([stacks["gate"], stacks["up"]], axis=2)}
    for part, stack in stacks.items():
        for layer, tensor in enumerate(stack):
            kind, name = kinds(part, layer), f"blk.{layer}.ffn_{part}_exps.weight"
            if kind == "F32":
                writer.add_tensor(name, tensor)
                exact[part, layer] = tensor
                continue
            raw = packed(tensor.reshape(-1, tensor.shape[-1]), kind)
            raw = raw.reshape(*tensor.shape[:2], raw.shape[-1])
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
            exact[part, layer] = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


def read(path: Path, names: Any = EITHER) -> Any:
    """The experts of the model in a file."""
    tensors = TranslatedGGUF(GGUFFile(path))
    port = tensors.adapted(Port(ExpertDecoder, lambda json: None, names=lambda config: names))
    return read_parameters(decoder(), tensors, port, "here").layers.experts


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "Q5_1", "MXFP4"])
@pytest.mark.parametrize("fused", [False, True])
def test_experts(fused: bool, kind: str, tmp_path: Path) -> None:
    """Each expert is read by itself and stays packed; gate and up may share a tensor."""
    exact = write(tmp_path / "m.gguf", lambda part, layer: kind, fused=fused)
    experts = read(tmp_path / "m.gguf")
    for layer, expert in np.ndindex(LAYERS, EXPERTS):
        gate_up = exact["gate_up", layer] if fused else np.concatenate([exact["gate", layer], exact["up", layer]], 1)
        for module, expected in (
            (experts.gate_proj, gate_up[:, :WIDTH]),
            (experts.up_proj, gate_up[:, WIDTH:]),
            (experts.down_proj, exact["down", layer]),
        ):
            stack = module.weight.get_value()
            assert isinstance(stack, {"F32": jax.Array, "MXFP4": MXFP4}.get(kind, GGUFBlocks))
            np.testing.assert_array_equal(stack[layer, expert], expected[expert])


def test_unlike_types(tmp_path: Path) -> None:
    """Files of mixed types have a finer one in some layers, as Q4_K_M has of `ffn_down_exps`."""
    exact = write(tmp_path / "m.gguf", lambda part, layer: "Q8_0" if (part, layer) == ("down", 1) else "Q4_0")
    experts = read(tmp_path / "m.gguf")
    assert isinstance(experts.down_proj.weight.get_value(), MixedStack)
    indexed = jax.jit(lambda stack, i, j: stack[i, j])
    for layer, expert in np.ndindex(LAYERS, EXPERTS):
        found = indexed(experts.down_proj.weight.get_value(), layer, expert)
        np.testing.assert_array_equal(found, exact["down", layer][expert])


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_rows_and_values_of_a_port(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port puts rows back in order, those of each expert too, and undoes what the converter computes of vectors."""
    order = np.random.default_rng(0).permutation(FEATURES)
    port = replace(
        PORT,
        rows=lambda config: {"experts.down_proj.weight": lambda count: order[:count]},
        values={"model.norm.*": lambda w: np.log(w + 1), "*norm.*": lambda w: w * 0},
    )
    monkeypatch.setattr(translated_gguf, "gguf_port_for", lambda arch: port)
    exact = write(tmp_path / "m.gguf", lambda part, layer: kind)
    tensors = TranslatedGGUF(GGUFFile(tmp_path / "m.gguf"))
    np.testing.assert_array_equal(tensors.read("model.norm.weight"), np.log(2 * np.ones(FEATURES, np.float32)))
    down = read(tmp_path / "m.gguf").down_proj.weight.get_value()
    for layer, expert in np.ndindex(LAYERS, EXPERTS):
        np.testing.assert_array_equal(down[layer, expert], exact["down", layer][expert][order])
    wrong = replace(port, rows=lambda config: {"experts.down_proj.weight": lambda count: order.reshape(5, -1)})
    monkeypatch.setattr(translated_gguf, "gguf_port_for", lambda arch: wrong)
    with pytest.raises(
        ConfigError, match=r"tensor blk.0.ffn_down_exps.weight: expected rows that can be put in order; found 128"
    ):
        TranslatedGGUF(GGUFFile(tmp_path / "m.gguf"))


def test_config(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", lambda part, layer: "F32", gating=1)
    config = TranslatedGGUF(GGUFFile(tmp_path / "m.gguf")).config
    sizes = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}
    assert sizes.items() <= config.items()
    assert "intermediate_size" not in config


def test_refusals(tmp_path: Path) -> None:
    """What contradicts itself, or what llama.cpp computes and the port does not."""
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"experts": 4},
            r"qwen3moe.expert_count: expected 3, as tensor blk.0.ffn_down_exps.weight has of shape \(3, ",
        ),
        ({"experts": 2**31}, r"qwen3moe.expert_count: expected 3, as tensor"),
        ({"experts": 0}, r"qwen3moe.expert_count: expected an integer of at least 1; found 0"),
        ({"gating": 2}, r"qwen3moe.expert_gating_func: expected 1, softmax; found 2"),
    ]
    for i, (options, message) in enumerate(cases):
        write(tmp_path / f"{i}.gguf", lambda part, layer: "F32", **options)
        with pytest.raises(ConfigError, match=message):
            TranslatedGGUF(GGUFFile(tmp_path / f"{i}.gguf"))
    write(tmp_path / "transposed.gguf", lambda part, layer: "F32")
    unlike = {path: "experts.elsewhere" for path in EITHER}
    assert read(tmp_path / "transposed.gguf", unlike)  # a file's own names need no place in the port
    wide = {"experts.gate_proj.weight": "experts.down_proj.weight"}
    with pytest.raises(CheckpointError, match=r"experts.down_proj.weight: expected shape \(3, 64, 128\)"):
        read(tmp_path / "transposed.gguf", wide)


def test_names() -> None:
    """A part may have a name of its own with its kind, or without one."""
    overrides = {
        "ssm_a": "linear_attn.A_log",
        "ssm_dt.bias": "linear_attn.dt_bias",
        "ffn_gate_inp.scale": "router.scale",
    }
    for ggml, hf in (
        ("blk.3.ssm_a", "model.layers.3.linear_attn.A_log"),
        ("blk.3.ssm_dt.bias", "model.layers.3.linear_attn.dt_bias"),
        ("blk.3.ffn_gate_inp.scale", "model.layers.3.router.scale"),
        ("blk.3.ffn_gate_inp.weight", "model.layers.3.mlp.gate.weight"),
        ("blk.3.ffn_up_shexp.weight", "model.layers.3.mlp.shared_expert.up_proj.weight"),
        ("blk.3.attn_q.scale", "blk.3.attn_q.scale"),
        ("blk.3.attn_q", "blk.3.attn_q"),
    ):
        assert hf_name(ggml, overrides) == hf
