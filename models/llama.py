r"""Llama: pre-norm blocks of grouped-query attention and a SiLU-gated MLP, with rotary positions.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023; "The Llama 3 Herd of Models", 2024.
Covers every checkpoint whose `model_type` is ``llama``: Llama 1 to 3.3, SmolLM and SmolLM2, TinyLlama, and others; and
``smollm3``.
Queries, keys, values and outputs have biases if `attention_bias`, the MLP if `mlp_bias`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.ropes import DynamicRope, no_rope
from jaxlin.porting.fields import decoder_numbers, layer_types, one_layer_type, rope_of, rotating_layers, windows
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort, check_gating
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Config):
    """`Config`, and which projections have biases."""

    attention_bias: bool
    mlp_bias: bool


class LlamaBlock(PreNorm):
    """RMSNorm before grouped-query attention and before a gated MLP."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        attention = Attention(config, bias=config.attention_bias, out_bias=config.attention_bias, rngs=rngs)
        super().__init__(config, norm, attention, GatedMLP(config, bias=config.mlp_bias, rngs=rngs))


class Llama(Decoder):
    """The Llama decoder."""

    Block = LlamaBlock

    def final_norm(self, config: Config) -> RMSNorm:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, config.norm_eps)


def llama_config(json: ConfigReader) -> LlamaConfig:
    """The config of Llama, with transformers' defaults."""
    numbers = decoder_numbers(json, max_position_embeddings=2048)
    depth = numbers["num_hidden_layers"]
    one_layer_type(json, depth)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    if isinstance(rope, DynamicRope):  # it adapts to any length
        numbers["max_position_embeddings"] = None
    return LlamaConfig(
        **numbers,
        ropes=(rope,) * depth,
        windows=(None,) * depth,
        attention_bias=json.take("attention_bias", bool, False),
        mlp_bias=json.take("mlp_bias", bool, False),
    )


def smollm3_config(json: ConfigReader) -> LlamaConfig:
    """The config of SmolLM3, which is Llama without rotation in every fourth layer ("NoPE")."""
    numbers = decoder_numbers(json, num_key_value_heads=4, max_position_embeddings=32768, tied=True)
    depth, length = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    rotated = rotating_layers(json, depth)
    slides = json.take("use_sliding_window", bool, False)
    window = json.positive_or_none("sliding_window", None)
    # Of layers that layer_types calls sliding, transformers' mask slides whatever use_sliding_window says.
    types = layer_types(json, depth, lambda i: slides and window is not None and not rotated[i])
    rope = rope_of(json, numbers["head_dim"], length, theta=2e6)
    return LlamaConfig(
        **numbers,
        ropes=tuple(rope if rotated[i] else no_rope(numbers["head_dim"]) for i in range(depth)),
        windows=windows(json, types, window),
        attention_bias=json.take("attention_bias", bool, False),
        mlp_bias=json.take("mlp_bias", bool, False),
    )


PORTS = {
    "llama": Port(Llama, llama_config),
    "smollm3": Port(Llama, smollm3_config),
}

BIASES = {"attention_bias": "self_attn.q_proj.bias", "mlp_bias": "mlp.up_proj.bias"}


def derive_llama(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Mixtral is converted to ``llama`` too: a file with experts is one of it."""
    check_gating(metadata, "softmax")
    return {"model_type": "mixtral"} if "num_local_experts" in config else {}


GGUF = {
    "llama": GGUFPort(
        model_type="llama",
        keys={**RMS_NORM, "expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        read=("expert_gating_func",),
        flags=BIASES,
        derive=derive_llama,
        pairs=True,
    ),
    "smollm3": GGUFPort(model_type="smollm3", flags=BIASES, pairs=True),
}
"""``llama`` is also what Mixtral and older Mistral models are converted to, without their window."""
