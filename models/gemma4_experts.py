r"""Gemma 4's mixture of experts, which stands beside the MLP of a layer.

With the stream $h$ after attention, a layer adds $n\big(n_1(\mathrm{mlp}(p\,h)) + n_2(\mathrm{experts}(p_2\,h))\big)$,
where $n$ and $p$ are norms. The router reads $h$ itself, through a norm of its own.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.models.gemma4_text import Gemma4, Gemma4Block, Gemma4Config
from jaxlin.nn import layers
from jaxlin.nn.context import Context
from jaxlin.nn.expert_products import blocks_of
from jaxlin.nn.experts import ExpertMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.routers import Route, Router
from jaxlin.nn.sites import InnerSite


class ScaledRouter(Router):
    """A softmax router of the normed and scaled stream; the weights of a token sum to 1 before each expert's factor."""

    def __init__(self, config: Gemma4Config, *, rngs: nnx.Rngs) -> None:
        super().__init__(config.hidden_size, config.num_experts, config.num_experts_per_tok, rngs=rngs)
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones(config.hidden_size))
        self.per_expert_scale = nnx.Param(jnp.ones(config.num_experts))

    def __call__(self, x: Float[Array, "t d"]) -> Route:
        r"""The route of each token, from $s \odot x / (\sqrt{\overline{x^2}} \sqrt d)$."""
        return super().__call__(layers.rms_norm(x, self.scale[...], self.eps, Context()) * x.shape[-1] ** -0.5)

    def choose(self, scores: Float[Array, "t e"]) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
        """Softmax over all, then the largest, divided by their sum, each times its expert's factor."""
        weights, experts = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), self.per_token)
        factors = self.per_expert_scale[...].astype(weights.dtype)[experts]
        return experts, weights / jnp.sum(weights, axis=-1, keepdims=True) * factors


class Gemma4MixtureBlock(Gemma4Block):
    """Gemma 4's block with experts beside its MLP. Their hidden neurons are first, those of the MLP follow."""

    def __init__(self, config: Gemma4Config, kind: str, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, kind, rngs=rngs)
        norm = functools.partial(RMSNorm, config.hidden_size, config.norm_eps)
        self.pre_feedforward_layernorm_2 = norm()
        self.post_feedforward_layernorm_1, self.post_feedforward_layernorm_2 = norm(), norm()
        self.moe = ExpertMLP(config, ScaledRouter(config, rngs=rngs), rngs=rngs)

    def feed_forward(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the MLP and the experts add to the stream `x`."""

        def normed(name: str, h: Float[Array, "t *b d"]) -> Float[Array, "t *b d"]:
            return getattr(self, name)(h, ctx.within(name))

        h, e = normed("pre_feedforward_layernorm", x), normed("pre_feedforward_layernorm_2", x)
        if ctx.evaluation.fold:
            dense = self.mlp(h, ctx.within("mlp"))
            routed = self.moe.routed(e, lambda: self.moe.gate(x), ctx.within("moe"))
        else:
            dense, routed = self.by_neurons(x, h, e, ctx)
        y = normed("post_feedforward_layernorm_1", dense) + normed("post_feedforward_layernorm_2", routed)
        return normed("post_feedforward_layernorm", y)

    def by_neurons(
        self, x: Float[Array, "t *b d"], h: Float[Array, "t *b d"], e: Float[Array, "t *b d"], ctx: Context
    ) -> tuple[Float[Array, "t *b d"], Float[Array, "t *b d"]]:
        """The MLP of `h` and the experts of `e`, by the route of `x`, with the neurons of both at one site."""
        inner, experts = ctx.within("moe"), self.moe
        route = experts.frozen_route(lambda: experts.gate(x), inner).last(e.shape[0])
        blocks = blocks_of(route.experts, experts.count, math.prod(e.shape[1:-1]))
        parts = [experts.neurons(e, route, blocks, inner), self.mlp.neurons(h, ctx.within("mlp"))]
        neurons = ctx.hook(InnerSite.NEURONS, jnp.concatenate(parts, axis=-1))
        routed = experts.experts.mix(experts.of_experts(neurons), route, blocks)
        return self.mlp.down(neurons[..., experts.routed_neurons :]), routed


class Gemma4Mixture(Gemma4):
    """The Gemma 4 decoder with experts in all layers."""

    Block = Gemma4MixtureBlock

    def make_block(self, config: Gemma4Config, kind: str, rngs: nnx.Rngs) -> Any:
        """As in `Gemma4`, with experts."""
        return Gemma4MixtureBlock(config, kind, rngs=rngs)
