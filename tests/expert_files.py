"""Checkpoints of a tiny decoder of experts alone, in each of the layouts that files have."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from quantised_files import FORMATS
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save

from jaxlin.checkpoint import CheckpointFolder
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.loading.parameters import read_parameters
from jaxlin.loading.stored import TensorSource
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.modules import RMSNorm, normal, without_values
from jaxlin.porting import Port, either, fused_experts, single_experts
from jaxlin.quantized import open_quantized
from jaxlin.quantized.format import QuantizedFolder

LAYERS, EXPERTS, WIDTH, FEATURES = 2, 3, 64, 128
"""So that 2 f = d, and the two orientations of a fused tensor have one shape."""

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(Config):
    """A decoder of experts alone."""

    num_experts: int
    biases: bool = False


class Projection(nnx.Module):
    """One matrix of every expert, and perhaps biases."""

    def __init__(self, out: int, features: int, config: ExpertConfig, rngs: nnx.Rngs) -> None:
        self.weight = normal(rngs, config.num_experts, out, features)
        self.bias = nnx.Param(jnp.zeros((config.num_experts, out))) if config.biases else None


class Experts(nnx.Module):
    """The experts of a layer."""

    def __init__(self, config: ExpertConfig, rngs: nnx.Rngs) -> None:
        self.gate_proj = Projection(WIDTH, FEATURES, config, rngs)
        self.up_proj = Projection(WIDTH, FEATURES, config, rngs)
        self.down_proj = Projection(FEATURES, WIDTH, config, rngs)


class Block(nnx.Module):
    """A layer of experts alone."""

    def __init__(self, config: ExpertConfig, *, rngs: nnx.Rngs) -> None:
        self.experts = Experts(config, rngs)


class ExpertDecoder(Decoder):
    """A decoder that is only read."""

    Block = Block

    def final_norm(self, config: Config) -> RMSNorm:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, 1e-6)


def decoder(biases: bool = False, experts: int | None = None) -> Any:
    """The decoder, without its values."""
    sizes = {"vocab_size": 5, "hidden_size": FEATURES, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": FEATURES, "max_position_embeddings": 9}
    numbers: dict[str, Any] = {**sizes, "norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True}
    config = ExpertConfig(**numbers, ropes=(), windows=(None,) * LAYERS, biases=biases, num_experts=experts or EXPERTS)
    return without_values(lambda rngs: ExpertDecoder(config, rngs=rngs))


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


def read(
    checkpoint: TensorSource,
    names: Mapping[str, Any],
    biases: bool = False,
    mesh: Any = None,
    experts: int | None = None,
) -> Any:
    """The experts of the model of a checkpoint."""
    port = Port(ExpertDecoder, lambda json: None, names=lambda config: names)
    return read_parameters(decoder(biases, experts), checkpoint, port, "here", mesh).layers.experts


def write_packed(folder: Path, layers: list[Tensors], form: str) -> tuple[QuantizedFolder, Tensors]:
    """A checkpoint with the weights of its experts in a quantised format, and the values that they stand for."""
    quantised, config, _ = FORMATS[form]
    tensors = {"model.embed_tokens.weight": torch.ones(5, FEATURES), "model.norm.weight": torch.ones(FEATURES)}
    exact: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(layers):
        for name, value in layer.items():
            full = f"model.layers.{i}.{name}"
            parts, exact[full] = quantised(full, torch.from_numpy(value))
            tensors |= {key: part.contiguous() for key, part in parts.items()}
    torch_save(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    reader = ConfigReader({"quantization_config": config}, "here")
    opened = open_quantized(CheckpointFolder(folder), reader)
    assert isinstance(opened, QuantizedFolder)
    return opened, {name: value.numpy() for name, value in exact.items()}


def layers_of(stacks: Tensors) -> list[Tensors]:
    """The parameters of each layer."""
    return [{name: stack[i] for name, stack in stacks.items()} for i in range(LAYERS)]
