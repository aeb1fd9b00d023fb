r"""Qwen 3.5 and later: three layers of a gated delta rule to one of gated attention, in Llama's pre-norm block.

Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2024; Qiu et al., "Gated Attention for Large Language Models",
2025. Covers the text half of the dense models from Qwen 3.5 on. Attention rotates a quarter of the features of a head;
weights of norms are stored as $w - 1$, but for those of the heads of the delta rule. Rotary positions have three axes,
on all of which a token of text has the same position: see `jaxlin.models.qwen_vl`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.gemma import OffsetRMSNorm
from jaxlin.models.qwen_vl import SECTIONS, VISION
from jaxlin.nn.blocks import LinearPreNorm, PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.gated_attention import GatedHeadNormAttention
from jaxlin.nn.gated_delta_net import DeltaNetSizes, GatedDeltaNet
from jaxlin.nn.mlp import GatedMLP
from jaxlin.porting.fields import decoder_numbers, rope_of
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort
from jaxlin.porting.hybrid_fields import (
    DELTA_NET_KEYS,
    DELTA_NET_PARTS,
    DELTA_NET_VALUES,
    LINEAR,
    delta_net_sizes,
    hybrid_keys,
    hybrid_layer_types,
)
from jaxlin.porting.port import Port
from jaxlin.porting.tensor_rows import TensorRows, stacked_rows


@dataclass(frozen=True, kw_only=True)
class QwenHybridConfig(Config):
    """`Config`, the sizes of the delta rule, and whether attention has biases."""

    delta_net: DeltaNetSizes
    attention_bias: bool = False

    @property
    def split_sizes(self) -> dict[str, int]:
        """Those of `Config`, and the heads of the delta rule."""
        heads = {"key_heads": self.delta_net.key_heads, "value_heads": self.delta_net.value_heads}
        return {**super().split_sizes, **{f"linear_num_{name}": count for name, count in heads.items()}}


class QwenLinearBlock(LinearPreNorm):
    """Norms stored as the difference from one, a gated delta rule and an MLP."""

    def __init__(self, config: QwenHybridConfig, mlp: Any, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(OffsetRMSNorm, eps=config.norm_eps)
        options: dict[str, Any] = {"act": config.hidden_act, "norm_eps": config.norm_eps}
        delta_net = GatedDeltaNet(config.hidden_size, config.delta_net, **options, rngs=rngs)
        super().__init__(config, norm, delta_net, mlp)


class QwenFullBlock(PreNorm):
    """The same with gated attention, whose queries and keys are normed in each head."""

    def __init__(self, config: QwenHybridConfig, mlp: Any, *, rngs: nnx.Rngs) -> None:
        norm, bias = functools.partial(OffsetRMSNorm, eps=config.norm_eps), config.attention_bias
        attention = GatedHeadNormAttention(config, norm=norm, bias=bias, out_bias=bias, rngs=rngs)
        super().__init__(config, norm, attention, mlp)


class QwenHybrid(Decoder):
    """The decoder of Qwen 3.5 without experts."""

    Block = QwenFullBlock

    def make_block(self, config: QwenHybridConfig, kind: str, rngs: nnx.Rngs) -> LinearPreNorm | PreNorm:
        """A layer of a delta rule, or one of attention."""
        return (QwenLinearBlock if kind == LINEAR else QwenFullBlock)(config, self.make_mlp(config, rngs), rngs=rngs)

    def make_mlp(self, config: Any, rngs: nnx.Rngs) -> Any:
        """The MLP of a layer."""
        return GatedMLP(config, rngs=rngs)

    def final_norm(self, config: Config) -> OffsetRMSNorm:
        """RMSNorm, its weight stored as its difference from one."""
        return OffsetRMSNorm(config.hidden_size, config.norm_eps)


def hybrid_numbers(json: ConfigReader, *, num_key_value_heads: int = 4, **width: Any) -> dict[str, Any]:
    """The fields of `QwenHybridConfig`; `width` is for `decoder_numbers`."""
    sizes: dict[str, Any] = {"head_dim": 256, "num_attention_heads": 16, "num_key_value_heads": num_key_value_heads}
    numbers = decoder_numbers(json, max_position_embeddings=32768, vocab_size=248320, **sizes, **width)
    depth, length = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    # Written in files, and read by no version of transformers.
    json.leave_out("attn_output_gate", "output_gate_type", "mlp_only_layers", "mamba_ssm_dtype")
    json.leave_out("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    interval = json.positive("full_attention_interval", 4)
    types = hybrid_layer_types(json, depth, lambda i: (i + 1) % interval != 0)
    rope = rope_of(json, numbers["head_dim"], length, partial=0.25, extra=SECTIONS)
    return {
        **numbers,
        "ropes": (rope,) * depth,
        "windows": (None,) * depth,
        "layer_kinds": types,
        "delta_net": delta_net_sizes(json, key_heads=16, value_heads=32, key_dim=128, value_dim=128),
        "attention_bias": json.take("attention_bias", bool, False),
    }


def qwen3_5_text_config(json: ConfigReader) -> QwenHybridConfig:
    """The config of the text model alone."""
    return QwenHybridConfig(**hybrid_numbers(json))


def text_half(json: ConfigReader) -> ConfigReader:
    """The config of the text half of a wrapper, which alone says whether the unembedding is tied."""
    json.leave_out("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = json.part("text_config")
    text.override("tie_word_embeddings", json.take("tie_word_embeddings", bool, False))
    return text


def qwen3_5_config(json: ConfigReader) -> QwenHybridConfig:
    """The config of the text half of the wrapper."""
    return qwen3_5_text_config(text_half(json))


def hybrid_names(config: QwenHybridConfig) -> Mapping[str, str | TensorRows]:
    """Queries, keys and values, and their convolutions, are fused on disk."""
    keys = config.delta_net.key_heads * config.delta_net.key_dim
    values = config.delta_net.value_heads * config.delta_net.value_dim
    modules = {"g_proj": "in_proj_z", "a_proj": "in_proj_a", "b_proj": "in_proj_b", "o_norm": "norm"}
    return {
        **stacked_rows("linear_attn.in_proj_qkv.weight", q_proj=keys, k_proj=keys, v_proj=values),
        **stacked_rows("linear_attn.conv1d.weight", q_conv1d=keys, k_conv1d=keys, v_conv1d=values),
        **{
            f"linear_attn.{ours}.weight": f"linear_attn.{theirs}.weight"
            for ours, theirs in {**modules, "o_proj": "out_proj"}.items()
        },
    }


LEFT_OUT = {**VISION, "mtp.*": "layers that draft several tokens at once"}
OPTIONS: dict[str, Any] = {
    "names": hybrid_names,
    "bodies": ("model.language_model.", "model."),
    "left_out": LEFT_OUT,
}

PORTS = {
    "qwen3_5": Port(QwenHybrid, qwen3_5_config, **OPTIONS),
    "qwen3_5_text": Port(QwenHybrid, qwen3_5_text_config, **OPTIONS),
}

HYBRID_GGUF = GGUFPort(
    model_type="qwen3_5_text",
    keys={**RMS_NORM, **DELTA_NET_KEYS, "full_attention_interval": "full_attention_interval"},
    read=("ssm.inner_size", "rope.dimension_sections"),
    parts=DELTA_NET_PARTS,
    flags={"attention_bias": "self_attn.q_proj.bias"},
    derive=hybrid_keys,
    values=DELTA_NET_VALUES,
    partial=True,
)
GGUF = {"qwen35": HYBRID_GGUF}
