r"""Gemma: RMSNorm with weights stored as $w - 1$, GeLU-gated MLPs, embeddings scaled by $\sqrt d$, tied.

Gemma Team, "Gemma", 2024; "Gemma 2", 2024; "Gemma 3 Technical Report", 2025.

- ``gemma``: Llama's pre-norm block.
- ``gemma2``: a norm before and after attention and MLP (sandwich); softcaps on attention scores and on logits; every
  other layer slides.
- ``gemma3_text``: the sandwich without softcaps; queries and keys normed in each head; five sliding layers to a full
  one, each kind with a rope of its own.
- ``gemma3``: the text half of the multimodal wrapper.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin import layers
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.config import Config
from jaxlin.decoder import Decoder
from jaxlin.hold import Hold
from jaxlin.layers import residual
from jaxlin.modules import Attention, GatedMLP, HeadNormAttention, RMSNorm, Schedule
from jaxlin.port import Port, decoder_numbers, layer_types, rope_of, ropes_by_type, windows


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(Config):
    """`Config`, the scale of attention scores and their softcap."""

    attention_scale: float
    attention_bias: bool
    attn_logit_softcapping: float | None = None


class OffsetRMSNorm(RMSNorm):
    """RMSNorm whose weight is stored as its difference from one."""

    def __call__(self, x: Float[Array, "*b d"], hold: Hold) -> Float[Array, "*b d"]:
        """`x`, normed."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return layers.rms_norm(x, 1 + self.weight[...].astype(wide), self.eps, hold)


class GemmaBlock(nnx.Module):
    """The block of Gemma 1."""

    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        self.input_layernorm = OffsetRMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = self.attention(config, rngs)
        self.post_attention_layernorm = OffsetRMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config, rngs=rngs)

    def attention(self, config: GemmaConfig, rngs: nnx.Rngs) -> Attention:
        """The attention of this version."""
        bias, scale, cap = config.attention_bias, config.attention_scale, config.attn_logit_softcapping
        return Attention(config, scale=scale, softcap=cap, bias=bias, out_bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "t d"], at: Schedule, hold: Hold) -> Float[Array, "q d"]:
        """The residual stream after the block."""
        x = hold.site("resid_pre", x)
        h = self.input_layernorm(x, hold.within("input_layernorm"))
        attn = hold.site("attn_out", self.self_attn(h, at, hold.within("self_attn")))
        x = hold.site("resid_mid", residual(x, attn))
        h = self.post_attention_layernorm(x, hold.within("post_attention_layernorm"))
        mlp = hold.site("mlp_out", self.mlp(h, hold.within("mlp")))
        return hold.site("resid_post", residual(x, mlp))


class Gemma2Block(GemmaBlock):
    """The sandwich: what is added to the stream is normed too, and a site holds what is really added."""

    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.pre_feedforward_layernorm = OffsetRMSNorm(config.hidden_size, config.norm_eps)
        self.post_feedforward_layernorm = OffsetRMSNorm(config.hidden_size, config.norm_eps)

    def __call__(self, x: Float[Array, "t d"], at: Schedule, hold: Hold) -> Float[Array, "q d"]:
        """The residual stream after the block."""
        x = hold.site("resid_pre", x)
        h = self.input_layernorm(x, hold.within("input_layernorm"))
        h = self.self_attn(h, at, hold.within("self_attn"))
        attn = hold.site("attn_out", self.post_attention_layernorm(h, hold.within("post_attention_layernorm")))
        x = hold.site("resid_mid", residual(x, attn))
        h = self.pre_feedforward_layernorm(x, hold.within("pre_feedforward_layernorm"))
        h = self.mlp(h, hold.within("mlp"))
        mlp = hold.site("mlp_out", self.post_feedforward_layernorm(h, hold.within("post_feedforward_layernorm")))
        return hold.site("resid_post", residual(x, mlp))


class Gemma3Block(Gemma2Block):
    """The sandwich with queries and keys normed in each head."""

    def attention(self, config: GemmaConfig, rngs: nnx.Rngs) -> Attention:
        """Attention with head norms."""

        def norm(features: int) -> OffsetRMSNorm:
            return OffsetRMSNorm(features, config.norm_eps)

        bias, scale, cap = config.attention_bias, config.attention_scale, config.attn_logit_softcapping
        return HeadNormAttention(config, norm=norm, scale=scale, softcap=cap, bias=bias, out_bias=bias, rngs=rngs)


class Gemma(Decoder):
    """The Gemma decoder."""

    Block = GemmaBlock

    def final_norm(self, config: Config) -> OffsetRMSNorm:
        """RMSNorm, its weight stored as its difference from one."""
        return OffsetRMSNorm(config.hidden_size, config.norm_eps)

    def embed(self, ids: Any | Int[Array, " t"]) -> Float[Array, "t d"]:
        """The scaled embeddings: what the blocks see, and what the map is linear in."""
        x = super().embed(ids)
        return x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)


class Gemma2(Gemma):
    """The Gemma 2 decoder."""

    Block = Gemma2Block


class Gemma3(Gemma):
    """The Gemma 3 decoder."""

    Block = Gemma3Block


def _numbers(json: ConfigReader, max_position_embeddings: int, **defaults: Any) -> dict[str, Any]:
    json.expect("use_bidirectional_attention", False)
    # Old files say gelu or nothing under hidden_act; transformers computes its tanh form all the same.
    json.take("hidden_act", str, "gelu_pytorch_tanh")
    numbers = decoder_numbers(
        json, hidden_act="gelu_pytorch_tanh", act_key="hidden_activation", head_dim=256, tied=True,
        max_position_embeddings=max_position_embeddings, **defaults,
    )  # fmt: skip
    return {**numbers, "attention_bias": json.take("attention_bias", bool, False)}


def translate(json: ConfigReader) -> GemmaConfig:
    """Gemma 1."""
    numbers = _numbers(json, 8192)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    depth = numbers["num_hidden_layers"]
    scale = numbers["head_dim"] ** -0.5
    return GemmaConfig(**numbers, ropes=(rope,) * depth, windows=(None,) * depth, attention_scale=scale)


def _scales(json: ConfigReader, final: float | None, attention: float | None) -> dict[str, Any]:
    return {
        "attention_scale": json.positive("query_pre_attn_scalar", 256) ** -0.5,
        "final_logit_softcapping": json.optional("final_logit_softcapping", float, final),
        "attn_logit_softcapping": json.optional("attn_logit_softcapping", float, attention),
    }


def translate2(json: ConfigReader) -> GemmaConfig:
    """Gemma 2."""
    numbers = _numbers(json, 8192)
    json.expect("cache_implementation", "hybrid")
    depth = numbers["num_hidden_layers"]
    types = layer_types(json, depth, lambda i: i % 2 == 0)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    return GemmaConfig(
        **numbers, **_scales(json, 30.0, 50.0), ropes=(rope,) * depth, windows=windows(json, types, 4096)
    )


def translate3(json: ConfigReader) -> GemmaConfig:
    """Gemma 3, text; the wrapper's text_config leaves out what is transformers' default."""
    numbers = _numbers(json, 131_072, vocab_size=262_208, num_attention_heads=8, num_key_value_heads=4)
    depth = numbers["num_hidden_layers"]
    pattern = json.positive("sliding_window_pattern", json.positive("_sliding_window_pattern", 6))
    types = layer_types(json, depth, lambda i: (i + 1) % pattern != 0)
    theta = {
        "full_attention": json.take("rope_theta", float, 1e6),
        "sliding_attention": json.take("rope_local_base_freq", float, 1e4),
    }
    ropes = ropes_by_type(json, numbers["head_dim"], numbers["max_position_embeddings"], theta)
    return GemmaConfig(
        **numbers,
        **_scales(json, None, None),
        ropes=tuple(ropes[kind] for kind in types),
        windows=windows(json, types, 4096),
    )


def translate3_wrapper(json: ConfigReader) -> GemmaConfig:
    """The text half of the multimodal wrapper."""
    json.leave_out("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
    json.leave_out("boi_token_id", "eoi_token_id", "image_token_id")
    json.expect("tie_word_embeddings", True)
    return translate3(json.part("text_config"))


VISION = {
    "vision_tower.*": "the vision half of the model",
    "multi_modal_projector.*": "the vision half of the model",
}

PORTS = {
    "gemma": Port(Gemma, translate),
    "gemma2": Port(Gemma2, translate2),
    "gemma3_text": Port(Gemma3, translate3),
    "gemma3": Port(Gemma3, translate3_wrapper, prefix="language_model.", left_out=VISION),
}
