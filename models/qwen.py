r"""Qwen: Llama's pre-norm block with biased queries, keys and values (2), or with normed queries and keys (3).

"Qwen2 Technical Report", 2024; "Qwen2.5 Technical Report", 2024; "Qwen3 Technical Report", 2025. Covers the
DeepSeek-R1 distills, whose `model_type` is ``qwen2`` or ``qwen3``. The value bias makes Qwen 2 affine: $b \ne 0$.
"""

import functools
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.llama import Llama
from jaxlin.nn.attention import Attention, HeadNormAttention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.porting.fields import decoder_numbers, layer_types, rope_of, windows
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class QwenConfig(Config):
    """`Config`, and whether Qwen 3's attention has biases."""

    attention_bias: bool = False


class Qwen2Block(PreNorm):
    """Llama's block; queries, keys and values have biases, outputs none."""

    def __init__(self, config: QwenConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        super().__init__(config, norm, Attention(config, bias=True, rngs=rngs), GatedMLP(config, rngs=rngs))


class Qwen3Block(PreNorm):
    """Llama's block; queries and keys are normed in each head."""

    def __init__(self, config: QwenConfig, *, rngs: nnx.Rngs) -> None:
        norm, bias = functools.partial(RMSNorm, eps=config.norm_eps), config.attention_bias
        attention = HeadNormAttention(config, norm=norm, bias=bias, out_bias=bias, rngs=rngs)
        super().__init__(config, norm, attention, GatedMLP(config, rngs=rngs))


class Qwen2(Llama):
    """The Qwen 2 decoder."""

    Block = Qwen2Block


class Qwen3(Llama):
    """The Qwen 3 decoder."""

    Block = Qwen3Block


def sliding_numbers(
    json: ConfigReader, *, theta: float = 1e4, full_layers: int = 28, **defaults: Any
) -> dict[str, Any]:
    """The fields that all versions of Qwen have in common; `full_layers` is the default of `max_window_layers`."""
    numbers = decoder_numbers(json, max_position_embeddings=32768, **{"num_key_value_heads": 32, **defaults})
    depth = numbers["num_hidden_layers"]
    slides = json.take("use_sliding_window", bool, False)
    first = json.take("max_window_layers", int, full_layers)
    # A window is written in every file, and means nothing unless use_sliding_window says so.
    window = json.positive_or_none("sliding_window", 4096) if slides else None
    json.leave_out("sliding_window")
    types = layer_types(json, depth, lambda i: window is not None and i >= first)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"], theta=theta)
    return {**numbers, "ropes": (rope,) * depth, "windows": windows(json, types, window)}


def qwen2_config(json: ConfigReader) -> QwenConfig:
    """The config of Qwen 2 and 2.5."""
    return QwenConfig(**sliding_numbers(json))


def qwen3_config(json: ConfigReader) -> QwenConfig:
    """The config of Qwen 3."""
    return QwenConfig(**sliding_numbers(json, head_dim=128), attention_bias=json.take("attention_bias", bool, False))


PORTS = {"qwen2": Port(Qwen2, qwen2_config), "qwen3": Port(Qwen3, qwen3_config)}

GGUF = {
    "qwen2": GGUFPort(model_type="qwen2"),
    "qwen3": GGUFPort(model_type="qwen3", flags={"attention_bias": "self_attn.q_proj.bias"}),
}
