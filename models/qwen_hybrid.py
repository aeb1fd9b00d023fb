r"""The blocks of Qwen's hybrids: layers of a gated delta rule and layers of gated attention, with Llama's pre-norm.

Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2024; Qiu et al., "Gated Attention for Large Language Models",
2025. Attention rotates a quarter of the features of a head; weights of norms are stored as $w - 1$, but for those of
the heads of the delta rule. `jaxlin.models.qwen3_5`, `qwen3_5_moe` and `qwen3_next` differ in their MLPs and in how
checkpoints store the delta rule's projections.
"""

import functools
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.gemma import OffsetRMSNorm
from jaxlin.nn.blocks import LinearPreNorm, PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.gated_attention import GatedHeadNormAttention
from jaxlin.nn.gated_delta_net import DeltaNetSizes, GatedDeltaNet
from jaxlin.nn.mlp import GatedMLP
from jaxlin.porting.fields import decoder_numbers, rope_of
from jaxlin.porting.hybrid_fields import LINEAR, delta_net_sizes, hybrid_layer_types
from jaxlin.porting.tensor_rows import TensorRows, stacked_rows


@dataclass(frozen=True, kw_only=True)
class QwenHybridConfig(Config):
    """`Config`, the sizes of the delta rule, and whether attention has biases."""

    delta_net: DeltaNetSizes
    attention_bias: bool = False

    @property
    def split_sizes(self) -> dict[str, int]:
        """Those of `Config`, and the heads of the delta rule."""
        return {**super().split_sizes, **self.delta_net.split_sizes}


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
    """The decoder of a hybrid without experts."""

    Block = QwenFullBlock

    def make_block(self, config: QwenHybridConfig, kind: str, rngs: nnx.Rngs) -> LinearPreNorm | PreNorm:
        """A layer of a delta rule, or one of attention."""
        block = QwenLinearBlock if kind.startswith(LINEAR) else QwenFullBlock
        return block(config, self.make_mlp(config, kind, rngs), rngs=rngs)

    def make_mlp(self, config: Any, kind: str, rngs: nnx.Rngs) -> Any:
        """The MLP of a layer of this kind."""
        return GatedMLP(config, rngs=rngs)

    def final_norm(self, config: Config) -> OffsetRMSNorm:
        """RMSNorm, its weight stored as its difference from one."""
        return OffsetRMSNorm(config.hidden_size, config.norm_eps)


def hybrid_numbers(
    json: ConfigReader, *, num_key_value_heads: int, vocab_size: int, rope_extra: tuple[str, ...] = (), **width: Any
) -> dict[str, Any]:
    """The fields of `QwenHybridConfig`.

    Args:
        json: the config.
        num_key_value_heads, vocab_size: transformers' defaults.
        rope_extra: parameters of rotary positions that do not affect a text.
        width: for `decoder_numbers`.
    """
    sizes: dict[str, Any] = {"head_dim": 256, "num_attention_heads": 16, "num_key_value_heads": num_key_value_heads}
    numbers = decoder_numbers(json, max_position_embeddings=32768, vocab_size=vocab_size, **sizes, **width)
    depth, length = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    interval = json.positive("full_attention_interval", 4)
    types = hybrid_layer_types(json, depth, lambda i: (i + 1) % interval != 0)
    rope = rope_of(json, numbers["head_dim"], length, partial=0.25, extra=rope_extra)
    return {
        **numbers,
        "ropes": (rope,) * depth,
        "windows": (None,) * depth,
        "layer_kinds": types,
        "delta_net": delta_net_sizes(json, key_heads=16, value_heads=32, key_dim=128, value_dim=128),
        "attention_bias": json.take("attention_bias", bool, False),
    }


def hybrid_names(config: QwenHybridConfig) -> dict[str, str | TensorRows]:
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


DRAFTS = {"mtp.*": "layers that draft several tokens at once"}
"""Tensors of hybrids that are no part of the model, and why."""
