"""Experts in each of the layouts that checkpoints have, read one matrix at a time into one stack."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from jaxlin.checkpoint import CheckpointFolder
from jaxlin.common.errors import CheckpointError
from jaxlin.loading.parameters import read_parameters
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.modules import RMSNorm, normal
from jaxlin.porting import Port, either, fused_experts, single_experts

LAYERS, EXPERTS, WIDTH, FEATURES = 2, 3, 4, 8
"""So that 2 f = d, and the two orientations of a fused tensor have one shape."""

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(Config):
    """A decoder of experts alone."""

    biases: bool = False


class Projection(nnx.Module):
    """One matrix of every expert, and perhaps biases."""

    def __init__(self, out: int, features: int, bias: bool, rngs: nnx.Rngs) -> None:
        self.weight = normal(rngs, EXPERTS, out, features)
        self.bias = nnx.Param(jnp.zeros((EXPERTS, out))) if bias else None


class Experts(nnx.Module):
    """The experts of a layer."""

    def __init__(self, bias: bool, rngs: nnx.Rngs) -> None:
        self.gate_proj = Projection(WIDTH, FEATURES, bias, rngs)
        self.up_proj = Projection(WIDTH, FEATURES, bias, rngs)
        self.down_proj = Projection(FEATURES, WIDTH, bias, rngs)


class Block(nnx.Module):
    """A layer of experts alone."""

    def __init__(self, config: ExpertConfig, *, rngs: nnx.Rngs) -> None:
        self.experts = Experts(config.biases, rngs)


class ExpertDecoder(Decoder):
    """A decoder that is only read."""

    Block = Block

    def final_norm(self, config: Config) -> RMSNorm:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, 1e-6)


def decoder(biases: bool = False) -> Any:
    """The decoder, without its values."""
    sizes = {"vocab_size": 5, "hidden_size": FEATURES, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 9}
    numbers: dict[str, Any] = {**sizes, "norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True}
    config = ExpertConfig(**numbers, ropes=(), windows=(None,) * LAYERS, biases=biases)
    return jax.eval_shape(lambda: ExpertDecoder(config, rngs=nnx.Rngs(0)))


def values(biases: bool = False) -> dict[str, np.ndarray]:
    """The stack of each parameter of the experts."""
    draw = np.random.default_rng(0)
    shapes = {"gate_proj": (WIDTH, FEATURES), "up_proj": (WIDTH, FEATURES), "down_proj": (FEATURES, WIDTH)}
    stacks = {f"{name}.weight": (LAYERS, EXPERTS, *shape) for name, shape in shapes.items()}
    if biases:
        stacks |= {f"{name}.bias": (LAYERS, EXPERTS, shape[0]) for name, shape in shapes.items()}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in stacks.items()}


def single(stacks: Tensors) -> Tensors:
    """A tensor for each matrix of each expert, with Mixtral's names."""
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    return {
        f"moe.experts.{e}.{names[name.removesuffix('.weight')]}.weight": matrix
        for name, stack in stacks.items()
        for e, matrix in enumerate(stack)
    }


def fused(stacks: Tensors) -> Tensors:
    """Rows of gate, then rows of up."""
    gate, up = stacks["gate_proj.weight"], stacks["up_proj.weight"]
    return {"experts.gate_up_proj": np.concatenate([gate, up], axis=1), "experts.down_proj": stacks["down_proj.weight"]}


def transposed(stacks: Tensors) -> Tensors:
    """Columns of gate, then columns of up."""
    return {name: tensor.swapaxes(1, 2) for name, tensor in fused(stacks).items()}


def interleaved(stacks: Tensors) -> Tensors:
    """Columns of gate and up in turns, and biases in turns too."""
    gate_up = {kind: np.stack([stacks[f"gate_proj.{kind}"], stacks[f"up_proj.{kind}"]], 2) for kind in KINDS}
    both = {kind: pairs.reshape(EXPERTS, 2 * WIDTH, *pairs.shape[3:]) for kind, pairs in gate_up.items()}
    return {
        "experts.gate_up_proj": both["weight"].swapaxes(1, 2),
        "experts.gate_up_proj_bias": both["bias"],
        "experts.down_proj": stacks["down_proj.weight"].swapaxes(1, 2),
        "experts.down_proj_bias": stacks["down_proj.bias"],
    }


KINDS = ("weight", "bias")
SINGLE = single_experts("experts", "moe.experts", ("w1", "w3", "w2"))
EITHER = either(SINGLE, fused_experts("experts", WIDTH))
TRANSPOSED = fused_experts("experts", WIDTH, transposed=True)
INTERLEAVED = fused_experts("experts", WIDTH, transposed=True, interleaved=True, biases=True)

LAYOUTS: dict[str, tuple[Callable[[Tensors], Tensors], Mapping[str, Any]]] = {
    "single": (single, EITHER),
    "fused": (fused, EITHER),
    "transposed": (transposed, TRANSPOSED),
    "interleaved": (interleaved, INTERLEAVED),
}


def write(folder: Path, layers: list[Tensors], dtype: Any = np.float32) -> CheckpointFolder:
    """A checkpoint with these tensors in its layers."""
    tensors = {f"model.layers.{i}.{name}": tensor for i, layer in enumerate(layers) for name, tensor in layer.items()}
    tensors |= {"model.embed_tokens.weight": np.ones((5, FEATURES)), "model.norm.weight": np.ones(FEATURES)}
    folder.mkdir(exist_ok=True)
    save_file({n: np.ascontiguousarray(t).astype(dtype) for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({}))
    return CheckpointFolder(folder)


def read(checkpoint: CheckpointFolder, names: Mapping[str, Any], biases: bool = False, mesh: Any = None) -> Any:
    """The experts of the model of a checkpoint."""
    port = Port(ExpertDecoder, lambda json: None, names=lambda config: names)
    return read_parameters(decoder(biases), checkpoint, port, "here", mesh).layers.experts


def layers_of(stacks: Tensors) -> list[Tensors]:
    """The parameters of each layer."""
    return [{name: stack[i] for name, stack in stacks.items()} for i in range(LAYERS)]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: Any, tmp_path: Path) -> None:
    lay_out, names = LAYOUTS[layout]
    stacks = values(biases=layout == "interleaved")
    checkpoint = write(tmp_path, list(map(lay_out, layers_of(stacks))), dtype)
    experts = read(checkpoint, names, biases=layout == "interleaved")
    for name, expected in stacks.items():
        module, kind = name.split(".")
        parameter = getattr(getattr(experts, module), kind).get_value()
        assert parameter.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(parameter[...], np.float32), expected.astype(dtype).astype(np.float32))
        if kind == "weight":
            matrix = jax.jit(lambda stack, i, j: stack[i, j])(parameter, 1, 2)
            np.testing.assert_array_equal(matrix, np.asarray(parameter[...], np.float32)[1, 2])


class TestRefusals:
    """What no layout of a port is."""

    def test_a_mixture(self, tmp_path: Path) -> None:
        """Layers in unlike layouts, or the parts of one layer."""
        first, second = layers_of(values())
        both = fused(first), single(first)
        part = {"experts.gate_up_proj": both[0]["experts.gate_up_proj"]}
        part |= {name: tensor for name, tensor in both[1].items() if "w2" in name}
        for i, layers in enumerate(([both[0], single(second)], [{**both[0], **both[1]}] * 2, [part, part])):
            with pytest.raises(CheckpointError, match=r"all layers in one layout; found some as .* and some as "):
                read(write(tmp_path / str(i), layers), EITHER)

    def test_shapes(self, tmp_path: Path) -> None:
        """Even where 2 f = d, so that one of the tensors does not show its orientation, the other one does."""
        layers = layers_of(values())
        for i, (lay_out, names) in enumerate([(transposed, EITHER), (fused, TRANSPOSED)]):
            with pytest.raises(CheckpointError, match=r"experts.down_proj: expected shape \(3, .*; found \(3, "):
                read(write(tmp_path / str(i), list(map(lay_out, layers))), names)

    def test_an_expert_is_missing(self, tmp_path: Path) -> None:
        layers = list(map(single, layers_of(values())))
        del layers[1]["moe.experts.2.w3.weight"]
        with pytest.raises(CheckpointError, match=r"tensor model.layers.1.moe.experts.2.w3.weight of shape \(4, 8\)"):
            read(write(tmp_path / "single", layers), EITHER)
        fewer = [{name: tensor[:2] for name, tensor in layer.items()} for layer in map(fused, layers_of(values()))]
        with pytest.raises(CheckpointError, match=r"expected shape \(3, 8, 4\); found \(2, 8, 4\)"):
            read(write(tmp_path / "fused", fewer), EITHER)

    def test_an_expert_too_many(self, tmp_path: Path) -> None:
        layers = list(map(single, layers_of(values())))
        layers[0] |= {name.replace("experts.2", "experts.3"): t for name, t in layers[0].items()}
        with pytest.raises(CheckpointError, match=r"found model.layers.0.moe.experts.3.w1.weight"):
            read(write(tmp_path, layers), EITHER)

    def test_unlike_widths(self, tmp_path: Path) -> None:
        layers = list(map(single, layers_of(values())))
        layers[1]["moe.experts.1.w1.weight"] = layers[1]["moe.experts.1.w1.weight"][:2]
        with pytest.raises(CheckpointError, match=r"experts.1.w1.weight: expected shape \(4, 8\); found \(2, 8\)"):
            read(write(tmp_path, layers), EITHER)
