r"""Gemma: RMSNorm with weights stored as $w - 1$, GeLU-gated MLPs, embeddings scaled by $\sqrt d$, tied.

Gemma Team, "Gemma", 2024. The block is Llama's. Gemma 2 and 3 use parts of this file.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.nn import layers
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import MakeNorm, PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.prompt import Embeddings
from jaxlin.porting.fields import decoder_numbers, one_layer_type, rope_of
from jaxlin.porting.gguf_keys import SHIFTED_NORMS, GGUFPort
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(Config):
    """`Config`, the scale of attention scores and their softcap."""

    attention_scale: float
    attention_bias: bool
    attn_logit_softcapping: float | None = None


class OffsetRMSNorm(RMSNorm):
    """RMSNorm whose weight is stored as its difference from one."""

    def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Float[Array, "*b d"]:
        """`x`, normed."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return layers.rms_norm(x, 1 + self.weight[...].astype(wide), self.eps, ctx)


def gemma_parts(config: GemmaConfig, rngs: nnx.Rngs) -> tuple[GemmaConfig, MakeNorm, Attention, GatedMLP]:
    """The arguments of a block of Gemma 1 or 2: attention scores may have a scale of their own and a softcap."""
    norm = functools.partial(OffsetRMSNorm, eps=config.norm_eps)
    bias, scale, softcap = config.attention_bias, config.attention_scale, config.attn_logit_softcapping
    attention = Attention(config, scale=scale, softcap=softcap, bias=bias, out_bias=bias, rngs=rngs)
    return config, norm, attention, GatedMLP(config, rngs=rngs)


class GemmaBlock(PreNorm):
    """Llama's block with weights of norms stored as their difference from one."""

    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(*gemma_parts(config, rngs))


class Gemma(Decoder):
    """The Gemma decoder."""

    Block = GemmaBlock

    def final_norm(self, config: Config) -> OffsetRMSNorm:
        """RMSNorm, its weight stored as its difference from one."""
        return OffsetRMSNorm(config.hidden_size, config.norm_eps)

    def embed(self, ids: Any | Int[Array, " t"], start: Any = 0) -> Float[Embeddings, "t d"]:
        """The scaled embeddings, which enter the first block: the local linear map is linear in them."""
        x = super().embed(ids, start)
        return x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)


def gemma_numbers(
    json: ConfigReader, max_position_embeddings: int, act_key: str = "hidden_activation", **defaults: Any
) -> dict[str, Any]:
    """The fields that all versions of Gemma have in common."""
    json.expect("use_bidirectional_attention", False)
    numbers = decoder_numbers(
        json, hidden_act="gelu_pytorch_tanh", act_key=act_key, head_dim=256, tied=True,
        max_position_embeddings=max_position_embeddings, **defaults,
    )  # fmt: skip
    return {**numbers, "attention_bias": json.take("attention_bias", bool, False)}


def gemma_config(json: ConfigReader) -> GemmaConfig:
    """The config of Gemma 1."""
    # The first files say gelu, and mean its tanh form, which transformers computes.
    if json.peek("hidden_act") == "gelu":
        json.override("hidden_act", "gelu_pytorch_tanh")
    numbers = gemma_numbers(json, 8192, "hidden_act", num_key_value_heads=16, num_attention_heads=16)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    depth = numbers["num_hidden_layers"]
    one_layer_type(json, depth)
    scale = numbers["head_dim"] ** -0.5
    return GemmaConfig(**numbers, ropes=(rope,) * depth, windows=(None,) * depth, attention_scale=scale)


PORTS = {"gemma": Port(Gemma, gemma_config)}

GGUF = {"gemma": GGUFPort(model_type="gemma", values=SHIFTED_NORMS)}
