r"""The decoder of Gemma 4: its kinds of layers, shared values and per-layer embeddings.

A block ends with a factor of the stream, ``layer_scalar``. The last layers may have no keys and values: they read those
of the last layer of their type that has. Small models have per-layer embeddings (`jaxlin.nn.per_layer`).
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.models.gemma import Gemma
from jaxlin.nn import layers
from jaxlin.nn.blocks import Sandwich
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.experts import ExpertConfig
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.per_layer import PerLayerBlock, PerLayerConfig, PerLayerDecoder
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.shared_attention import FULL, SHARED, SharedAttention, value_norm_attention


@dataclass(frozen=True, kw_only=True)
class Gemma4Config(PerLayerConfig, ExpertConfig):
    """The config of all models of Gemma 4; without experts their numbers are 0.

    `head_dim` and `num_key_value_heads` are those of sliding layers, `intermediate_size` that of layers with values of
    their own.

    Attributes:
        attention_bias: whether the projections of attention have biases.
        full_head_dim: features of a head in full layers.
        full_key_value_heads: key-value heads in full layers.
        keys_are_values: whether one projection gives keys and values in full layers.
        shared_intermediate_size: hidden features of an MLP in layers that read an earlier one's values.
    """

    attention_bias: bool
    full_head_dim: int
    full_key_value_heads: int
    keys_are_values: bool
    shared_intermediate_size: int

    @property
    def neurons(self) -> int:
        """Those of the widest MLP, and of the chosen experts beside it."""
        return max(self.intermediate_size, self.shared_intermediate_size) + super().neurons

    @property
    def split_sizes(self) -> dict[str, int]:
        """As in `Config`, and the key-value heads of full layers."""
        return {**super().split_sizes, "num_global_key_value_heads": self.full_key_value_heads}

    def of_kind(self, kind: str) -> "Gemma4Config":
        """The config of a model that has only layers of one kind."""
        heads = {"head_dim": self.full_head_dim, "num_key_value_heads": self.full_key_value_heads}
        width = {"intermediate_size": self.shared_intermediate_size}
        return replace(self, **(heads if kind.endswith(FULL) else {}), **(width if kind.startswith(SHARED) else {}))


class Gemma4Block(Sandwich, PerLayerBlock):
    """Gemma 3's block, with per-layer embeddings and a factor of the stream at its end."""

    def __init__(self, config: Gemma4Config, kind: str, *, rngs: nnx.Rngs) -> None:
        norm, own = functools.partial(RMSNorm, eps=config.norm_eps), config.of_kind(kind)
        options = {"bias": config.attention_bias}
        if kind == FULL and config.keys_are_values:
            options["keys_are_values"] = True
        attention = value_norm_attention(own, kind, **options, rngs=rngs)
        super().__init__(own, norm, attention, GatedMLP(own, rngs=rngs))
        self.layer_scalar = nnx.Param(jnp.ones(1))
        self.make_per_layer(config, norm, rngs)

    def attention_input(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """The normed stream; where queries alone read it, the norm is a part of the pattern, and is not frozen itself.

        A replay then reads nothing of it but its shape.
        """
        if not isinstance(self.self_attn, SharedAttention):
            return super().attention_input(x, ctx)
        return x if ctx.is_replay else self.input_layernorm(x, Context())

    def leave(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "t *b d"]:
        """The stream with the per-layer embeddings, times the factor."""
        if self.per_layer_input_gate is not None:
            x = layers.add_to_stream(x, ctx.hook("per_layer_out", self.per_layer(x, ctx)))
        return x * layers.broadcast_last(self.layer_scalar[...].astype(x.dtype), x)


class Gemma4(PerLayerDecoder, Gemma):
    """The Gemma 4 decoder."""

    Block = Gemma4Block

    def make_block(self, config: Gemma4Config, kind: str, rngs: nnx.Rngs) -> Gemma4Block:
        """A block of a kind: the type of its attention, after ``shared_`` if it has no values of its own."""
        return Gemma4Block(config, kind, rngs=rngs)

    def final_norm(self, config: Config) -> Any:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, config.norm_eps)

    def direct_factors(self) -> Float[Array, " l"]:
        """The product of ``layer_scalar`` from each layer on."""
        scalars = self.layout.map(lambda blocks: blocks.layer_scalar[...].astype(self.dtype), self.layers)
        return jnp.cumprod(scalars[::-1, 0])[::-1]
