r"""The decoder of Gemma 3n: several residual streams, a low-rank path beside attention, MLPs with few active neurons.

Google DeepMind, "Gemma 3n", 2025. A layer computes on the first of the streams (`jaxlin.nn.altup`). Beside attention
it has a *learned augmented residual*, $n + \mathrm{norm}(R L n)$ of the normed stream $n$ (Menghani, Kumar and Kumar,
"LAuReL: Learned Augmented Residual Layer", 2024). What per-layer embeddings add (`jaxlin.nn.per_layer`) goes into the
other streams alone. The first block makes these of the embeddings, and the last one takes the mean of all.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxlin.models.gemma import Gemma
from jaxlin.nn import layers
from jaxlin.nn.altup import STREAMS, AltUp, StreamProjections, all_streams, leave_streams, other_streams
from jaxlin.nn.block_input import shared_site, shared_sites
from jaxlin.nn.blocks import Sandwich
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import Linear, RMSNorm
from jaxlin.nn.per_layer import PerLayerBlock, PerLayerConfig, PerLayerDecoder
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.shared_attention import value_norm_attention
from jaxlin.nn.sites import InnerSite, Place
from jaxlin.nn.top_k_mlp import TopKGatedMLP


@dataclass(frozen=True, kw_only=True)
class Gemma3nConfig(PerLayerConfig):
    """`PerLayerConfig`, whose `intermediate_size` is that of the widest MLP.

    Attributes:
        attention_bias: whether the projections of attention have biases.
        attention_kinds: the type of each layer's attention, after ``shared_`` if it reads an earlier one's values.
        intermediate_sizes: hidden features of the MLP of each layer.
        sparsities: the share of an MLP's neurons that are off; 0 where all are on.
        altup_num_inputs: the number of streams.
        altup_correct_scale: whether the gate of per-layer embeddings reads a stream with a factor for each feature.
        laurel_rank: the rank of the path beside attention.
    """

    attention_bias: bool
    attention_kinds: tuple[str, ...] = field(repr=False)
    intermediate_sizes: tuple[int, ...] = field(repr=False)
    sparsities: tuple[float, ...] = field(repr=False)
    altup_num_inputs: int
    altup_correct_scale: bool
    laurel_rank: int


class Laurel(nnx.Module):
    """The learned augmented residual."""

    def __init__(self, config: Gemma3nConfig, *, rngs: nnx.Rngs) -> None:
        d, rank = config.hidden_size, config.laurel_rank
        self.linear_left, self.linear_right = Linear(d, rank, rngs=rngs), Linear(rank, d, rngs=rngs)
        self.post_laurel_norm = RMSNorm(d, config.norm_eps)

    def __call__(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        r"""$x + \mathrm{norm}(R L x)$."""
        return x + self.post_laurel_norm(self.linear_right(self.linear_left(x)), ctx.within("post_laurel_norm"))


class Gemma3nBlock(Sandwich, PerLayerBlock):
    """A sandwich around attention and the MLP of the first stream, and what the other streams get of it."""

    def __init__(self, config: Gemma3nConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        norm, bias = functools.partial(RMSNorm, eps=config.norm_eps), config.attention_bias
        attention = value_norm_attention(config, config.attention_kinds[layer], bias=bias, rngs=rngs)
        features, sparsity = config.intermediate_sizes[layer], config.sparsities[layer]
        mlp = functools.partial(TopKGatedMLP, sparsity=sparsity) if sparsity else GatedMLP
        super().__init__(config, norm, attention, mlp(config, features=features, rngs=rngs))
        self.make_per_layer(config, norm, rngs)
        d, self.streams, self.scaled = config.hidden_size, config.altup_num_inputs, config.altup_correct_scale
        self.altup = AltUp(d, self.streams, config.norm_eps, rngs=rngs)
        self.laurel = Laurel(config, rngs=rngs)
        is_last = layer == config.num_hidden_layers - 1
        self.entry = StreamProjections(d, self.streams, rngs=rngs) if layer == 0 else None
        self.exit = StreamProjections(d, self.streams, rngs=rngs) if is_last else None

    def __call__(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "q *b d"]:
        """The first stream after the block, or after the last one the mean of all."""
        x = ctx.hook("resid_pre", x)
        others = self.entry.spread(x, ctx.within("entry")) if self.entry else other_streams(x, self.streams, ctx)
        predicted = self.altup.predict(all_streams(x, others), ctx.within("altup"))
        x = ctx.hook(InnerSite.ATTN_IN, predicted[..., 0, :])
        h = self.input_layernorm(x, ctx.within("input_layernorm"))
        attn = self.self_attn(h, schedule, ctx.within("self_attn"))
        attn = ctx.hook("attn_out", self.post_attention_layernorm(attn, ctx.within("post_attention_layernorm")))
        x = layers.add_to_stream(x + self.laurel(h, ctx.within("laurel")), attn)
        x = ctx.hook("resid_mid", x * 2**-0.5)
        mlp = ctx.hook("mlp_out", self.feed_forward(ctx.hook(InnerSite.MLP_IN, x), ctx))
        x = layers.add_to_stream(x, mlp)
        corrected = self.altup.correct(predicted, x, ctx.within("altup"))
        x, others = corrected[..., 0, :], corrected[..., 1:, :]
        scale = layers.broadcast_last(self.altup.correct_output_scale[...].astype(x.dtype), x) if self.scaled else 1
        others = others + ctx.hook("per_layer_out", self.per_layer(x * scale, ctx))[..., None, :]
        if self.exit is None:
            leave_streams(others, ctx)
            return ctx.hook("resid_post", x)
        return ctx.hook("resid_post", self.exit.merge(x, others, ctx.within("exit")))


class Gemma3n(PerLayerDecoder, Gemma):
    """The Gemma 3n decoder."""

    Block = Gemma3nBlock

    def make_block(self, config: Gemma3nConfig, kind: str, rngs: nnx.Rngs) -> Gemma3nBlock:
        """A block like that of the first layer of a kind."""
        return Gemma3nBlock(config, config.layer_kinds.index(kind), rngs=rngs)

    def final_norm(self, config: Config) -> Any:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, config.norm_eps)

    def is_cut(self, place: Place) -> bool:
        """Only before the first block and after the last: in between other streams pass by."""
        return place.layer == self.config.num_hidden_layers or place == Place(0)

    @property
    def shared_sites(self) -> tuple[str, ...]:
        """The values that layers share, and the other streams."""
        of_attention = shared_sites(self.config.value_layers, self.config.attention_kinds)
        return tuple(sorted({*of_attention, shared_site(STREAMS)}))

    @property
    def sharing_layers(self) -> tuple[int, ...]:
        """As in `Decoder`, and the first, which makes the other streams."""
        return tuple(sorted({0, *super().sharing_layers}))

    def direct_factors(self) -> None:
        """None: the coefficients of the streams, which are those of each token, are on the direct path."""
        return
