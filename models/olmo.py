r"""OLMo: Llama's block with weightless LayerNorms (1), or with norms after attention and MLP (2, 3).

Groeneveld et al., "OLMo", 2024; "2 OLMo 2 Furious", 2024; "Olmo 3", 2025.

- ``olmo``: LayerNorm without weight or bias; queries, keys and values may be clipped.
- ``olmo2``: no norm before attention and MLP, one after each; queries and keys normed over their full width.
- ``olmo3``: three sliding layers to a full one; YaRN in the full ones only.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.config import Config
from jaxlin.decoder import Decoder
from jaxlin.hold import Hold
from jaxlin.layers import residual
from jaxlin.models.llama import LlamaBlock
from jaxlin.modules import Attention, GatedMLP, LayerNorm, RMSNorm, Schedule
from jaxlin.port import Port, decoder_numbers, layer_types, rope_of, ropes_by_type, windows


@dataclass(frozen=True, kw_only=True)
class OlmoConfig(Config):
    """`Config`, whether attention has biases, and OLMo 1's bound of queries, keys and values."""

    attention_bias: bool
    clip_qkv: float | None = None


class ClippedAttention(Attention):
    r"""Attention whose queries, keys and values are clipped to $[-c, c]$: a value times a held ratio."""

    def __init__(self, config: OlmoConfig, clip: float, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, bias=config.attention_bias, out_bias=config.attention_bias, rngs=rngs)
        self.clip = clip

    def queries_and_keys(self, x: Float[Array, "t d"]) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation, clipped."""
        q, k = super().queries_and_keys(x)
        return jnp.clip(q, -self.clip, self.clip), jnp.clip(k, -self.clip, self.clip)

    def values(self, x: Float[Array, "t d"], hold: Hold) -> Float[Array, "t n k"]:
        """Values, clipped."""
        v = super().values(x, hold)
        return v * hold("clip", lambda: jnp.minimum(1, self.clip / jnp.maximum(jnp.abs(v), self.clip)))


class OlmoBlock(LlamaBlock):
    """Llama's block with LayerNorms that have no parameters."""

    def __init__(self, config: OlmoConfig, *, rngs: nnx.Rngs) -> None:
        bias = config.attention_bias
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps, affine=False)
        if config.clip_qkv is None:
            self.self_attn = Attention(config, bias=bias, out_bias=bias, rngs=rngs)
        else:
            self.self_attn = ClippedAttention(config, config.clip_qkv, rngs=rngs)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps, affine=False)
        self.mlp = GatedMLP(config, rngs=rngs)


class WidthNormAttention(Attention):
    """Attention whose queries and keys are normed over all heads together, before they are split."""

    def __init__(self, config: OlmoConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, bias=config.attention_bias, out_bias=config.attention_bias, rngs=rngs)
        self.q_norm = RMSNorm(config.num_attention_heads * config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.num_key_value_heads * config.head_dim, config.norm_eps)

    def queries_and_keys(self, x: Float[Array, "t d"]) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation, normed."""
        # The whole pattern is held, so nothing within it needs to be.
        return self.split(self.q_norm(self.q_proj(x), Hold())), self.split(self.k_norm(self.k_proj(x), Hold()))


class Olmo2Block(nnx.Module):
    """Norms stand after attention and MLP, before what they give is added."""

    def __init__(self, config: OlmoConfig, *, rngs: nnx.Rngs) -> None:
        self.self_attn = WidthNormAttention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config, rngs=rngs)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def __call__(self, x: Float[Array, "t d"], at: Schedule, hold: Hold) -> Float[Array, "q d"]:
        """The residual stream after the block."""
        x = hold.site("resid_pre", x)
        h = self.self_attn(x, at, hold.within("self_attn"))
        attn = hold.site("attn_out", self.post_attention_layernorm(h, hold.within("post_attention_layernorm")))
        x = hold.site("resid_mid", residual(x, attn))
        h = self.mlp(x, hold.within("mlp"))
        mlp = hold.site("mlp_out", self.post_feedforward_layernorm(h, hold.within("post_feedforward_layernorm")))
        return hold.site("resid_post", residual(x, mlp))


class Olmo(Decoder):
    """The OLMo 1 decoder."""

    Block = OlmoBlock

    def final_norm(self, config: Config) -> Any:
        """LayerNorm without parameters."""
        return LayerNorm(config.hidden_size, config.norm_eps, affine=False)


class Olmo2(Decoder):
    """The decoder of OLMo 2 and 3."""

    Block = Olmo2Block

    def final_norm(self, config: Config) -> Any:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, config.norm_eps)


def translate(json: ConfigReader) -> OlmoConfig:
    """OLMo 1, whose norms add 1e-5 under the root whatever a config says."""
    numbers = decoder_numbers(json, norm_eps=1e-5, eps_key=None, max_position_embeddings=2048)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    return OlmoConfig(
        **numbers,
        ropes=(rope,) * numbers["num_hidden_layers"],
        windows=(None,) * numbers["num_hidden_layers"],
        attention_bias=json.take("attention_bias", bool, False),
        clip_qkv=json.optional("clip_qkv", float, None),
    )


def translate2(json: ConfigReader) -> OlmoConfig:
    """OLMo 2."""
    numbers = decoder_numbers(json, norm_eps=1e-5, max_position_embeddings=2048)
    depth = numbers["num_hidden_layers"]
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    bias = json.take("attention_bias", bool, False)
    return OlmoConfig(**numbers, ropes=(rope,) * depth, windows=(None,) * depth, attention_bias=bias)


def translate3(json: ConfigReader) -> OlmoConfig:
    """Olmo 3."""
    numbers = decoder_numbers(json, norm_eps=1e-5, max_position_embeddings=2048)
    types = layer_types(json, numbers["num_hidden_layers"], lambda i: (i + 1) % 4 != 0)
    theta = json.take("rope_theta", float, 5e5)
    ropes = ropes_by_type(
        json,
        numbers["head_dim"],
        numbers["max_position_embeddings"],
        dict.fromkeys(("full_attention", "sliding_attention"), theta),
    )
    return OlmoConfig(
        **numbers,
        ropes=tuple(ropes[kind] for kind in types),
        windows=windows(json, types, 4096),
        attention_bias=json.take("attention_bias", bool, False),
    )


PORTS = {"olmo": Port(Olmo, translate), "olmo2": Port(Olmo2, translate2), "olmo3": Port(Olmo2, translate3)}
