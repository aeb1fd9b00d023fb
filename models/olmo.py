r"""OLMo 1: Llama's block with LayerNorms that have no weight and no bias; queries, keys and values may be clipped.

Groeneveld et al., "OLMo", 2024.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import rows_for
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import LayerNorm
from jaxlin.porting.fields import decoder_numbers, one_layer_type, rope_of
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class OlmoConfig(Config):
    """`Config`, whether attention has biases, and OLMo 1's bound of queries, keys and values."""

    attention_bias: bool
    clip_qkv: float | None = None


class ClippedAttention(Attention):
    r"""Attention whose queries, keys and values are clipped to $[-c, c]$: a value times a frozen ratio."""

    def __init__(self, config: OlmoConfig, clip: float, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, bias=config.attention_bias, out_bias=config.attention_bias, rngs=rngs)
        self.clip = clip

    def queries_and_keys(
        self, x: Float[Array, "t d"], ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation, clipped."""
        q, k = super().queries_and_keys(x, ctx)
        return clipped(q, self.clip, ctx.within("q")), clipped(k, self.clip, ctx.within("k"))

    def adjusted_values(self, v: Float[Array, "t *b n k"], ctx: Context) -> Float[Array, "t *b n k"]:
        """Values, clipped."""
        return clipped(v, self.clip, ctx)


def clipped(v: Float[Array, "t *b n k"], clip: float, ctx: Context) -> Float[Array, "t *b n k"]:
    r"""`v` clipped to $[-c, c]$: a value times a frozen ratio."""
    ratio = ctx.freeze("clip", lambda: jnp.minimum(1, clip / jnp.maximum(jnp.abs(v), clip)))
    return v * rows_for(ratio, v)


class OlmoBlock(PreNorm):
    """Llama's block with LayerNorms that have no parameters."""

    def __init__(self, config: OlmoConfig, *, rngs: nnx.Rngs) -> None:
        norm, bias = functools.partial(LayerNorm, eps=config.norm_eps, affine=False), config.attention_bias
        if config.clip_qkv is None:
            attention = Attention(config, bias=bias, out_bias=bias, rngs=rngs)
        else:
            attention = ClippedAttention(config, config.clip_qkv, rngs=rngs)
        super().__init__(config, norm, attention, GatedMLP(config, rngs=rngs))


class Olmo(Decoder):
    """The OLMo 1 decoder."""

    Block = OlmoBlock

    def final_norm(self, config: Config) -> Any:
        """LayerNorm without parameters."""
        return LayerNorm(config.hidden_size, config.norm_eps, affine=False)


def olmo_config(json: ConfigReader) -> OlmoConfig:
    """The config of OLMo 1, whose norms add 1e-5 under the root whatever the file says."""
    numbers = decoder_numbers(json, norm_eps=1e-5, eps_key=None, max_position_embeddings=2048)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    depth = numbers["num_hidden_layers"]
    one_layer_type(json, depth)
    return OlmoConfig(
        **numbers,
        ropes=(rope,) * depth,
        windows=(None,) * depth,
        attention_bias=json.take("attention_bias", bool, False),
        clip_qkv=json.above_zero("clip_qkv", json.optional("clip_qkv", float, None)),
    )


PORTS = {"olmo": Port(Olmo, olmo_config)}

GGUF = {
    "olmo": GGUFPort(
        model_type="olmo",
        keys={"attention.clamp_kqv": "clip_qkv"},
        fixed={"attention.layer_norm_epsilon": 1e-5},
        pairs=True,
    ),
}
