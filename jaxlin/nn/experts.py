r"""Mixtures of experts: MLPs of which each token passes through the few that a router chooses.

$$y = \sum_i w_i\, D_{e_i} \big(\mathrm{act}(G_{e_i} x) \odot U_{e_i} x\big)$$

with the experts $e_i$ and weights $w_i$ of the token's route. Frozen are the route, and the factors of the two branches
as in a gated MLP, with the weight multiplied into them: the rule ``"gate"`` freezes $w_i\,\mathrm{act}(g)$, and a rule
of your own gets $w_i\,\mathrm{act}(g)/g$ as its slope. The hidden neurons of a token are those of its $k$ experts side
by side, and after them those of a shared expert, through which every token passes.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.nn import layers
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.expert_products import Blocks, blocks_of, from_hidden, to_hidden
from jaxlin.nn.folding import fold_tokens, folded_matrix
from jaxlin.nn.freeze_rules import BranchFactors
from jaxlin.nn.layers import rows_for
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import Linear, normal, parameter_value
from jaxlin.nn.routers import Route, Router
from jaxlin.nn.sites import InnerSite
from jaxlin.quantized.mixed import UnslicedStack

EXPERTS, DENSE = "experts", "dense"
"""The kinds of layers in `Config.layer_kinds` of a model in which not every layer has experts. A kind may begin with a
name of the layer's mixer, and then ends in one of these."""


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(Config):
    """`Config`, and the sizes of a mixture of experts.

    Attributes:
        num_experts: the experts of a layer.
        num_experts_per_tok: those that each token passes through.
        moe_intermediate_size: hidden features of an expert.
        shared_expert_intermediate_size: hidden features of the shared expert; 0 if there is none.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int = 0

    @property
    def neurons(self) -> int:
        """Those of the chosen experts and of the shared one, or of a layer without experts if it has more."""
        experts = self.num_experts_per_tok * self.moe_intermediate_size + self.shared_expert_intermediate_size
        return max(experts, self.intermediate_size) if self.has_dense_layers else experts

    @property
    def has_dense_layers(self) -> bool:
        """Whether some layers have an MLP without experts."""
        return any(kind.endswith(DENSE) for kind in self.layer_kinds)

    @property
    def split_sizes(self) -> dict[str, int]:
        """Experts are divided among the devices whole; a shared one, or an MLP without experts, by its features."""
        names = ["num_attention_heads", "num_key_value_heads", "num_experts"]
        names += ["intermediate_size"] if self.has_dense_layers else []
        names += ["shared_expert_intermediate_size"] if self.shared_expert_intermediate_size else []
        return {name: getattr(self, name) for name in names}


class ExpertParam(nnx.Param, UnslicedStack):
    """The matrices of all experts, ``[layers, experts, out, in]``.

    A scan over layers that sliced them would copy all experts of a layer, of which a token needs few.
    """

    def scanned(self) -> Any:
        """The indices of the layers; None where the matrices are left out, as from the biases of a model."""
        arrays = jax.tree.leaves(self.get_value())
        # The last array of a mixed stack is that of the places of the layers; any array of another has all layers.
        return jnp.arange(arrays[-1].shape[0]) if arrays else None

    def with_row(self, row: Any) -> "ExpertMatrices":
        """The matrices of one layer."""
        return ExpertMatrices(self.get_value(), row)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExpertMatrices:
    """The matrices of the experts of one layer, indexed in the stack of all layers: a packed one is unpacked alone.

    Attributes:
        stack: an array or a packed matrix, ``[layers, experts, out, in]``.
        layer: the index of the layer.
    """

    stack: Leaf
    layer: Leaf

    def __getitem__(self, expert: int | Int[Array, ""]) -> Float[Array, "o i"]:
        """The matrix of an expert."""
        if isinstance(self.stack, jax.Array):
            return self.stack.at[self.layer, expert].get(mode="promise_in_bounds", wrap_negative_indices=False)
        return self.stack[self.layer, expert]


class ExpertLinear(nnx.Module):
    """A matrix for each expert, ``[out, in]``, and a bias for each if they have one."""

    def __init__(self, experts: int, in_features: int, out_features: int, *, bias: bool, rngs: nnx.Rngs) -> None:
        self.weight: Any = ExpertParam(normal(rngs, experts, out_features, in_features).get_value())
        self.bias = nnx.Param(jnp.zeros((experts, out_features))) if bias else None

    def biases(self, route: Route, like: Float[Array, "t *b k i"]) -> Float[Array, "t *c k o"] | None:
        """The bias of each expert of each token, in the dtype of `like` and with axes for its batch; None without."""
        bias = parameter_value(self.bias)
        return None if bias is None else rows_for(bias[route.experts].astype(like.dtype), like)


class Experts(nnx.Module):
    """The matrices of all experts of a layer.

    Args:
        config: the config of the model.
        bias: whether each projection of each expert has a bias.
        rngs: for the parameters.
    """

    def __init__(self, config: ExpertConfig, *, bias: bool = False, rngs: nnx.Rngs) -> None:
        n, d, f = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_proj = ExpertLinear(n, d, f, bias=bias, rngs=rngs)
        self.up_proj = ExpertLinear(n, d, f, bias=bias, rngs=rngs)
        self.down_proj = ExpertLinear(n, f, d, bias=bias, rngs=rngs)

    @property
    def projections(self) -> tuple[ExpertLinear, ExpertLinear, ExpertLinear]:
        """Gate, up and down."""
        return self.gate_proj, self.up_proj, self.down_proj

    def branch(
        self, projection: ExpertLinear, x: Float[Array, "t *b d"], route: Route, blocks: Blocks
    ) -> Float[Array, "t *b k f"]:
        """One of the two branches of the experts of each token."""
        hidden = to_hidden(x, projection.weight, blocks)
        bias = projection.biases(route, hidden)
        return hidden if bias is None else hidden + bias

    def mix(self, hidden: Float[Array, "t *b k f"], route: Route, blocks: Blocks) -> Float[Array, "t *b d"]:
        """What the experts add to the stream; `hidden` has their weights in it, and the biases get them here."""
        y = from_hidden(hidden, self.down_proj.weight, blocks)
        bias = self.down_proj.biases(route, hidden)
        return y if bias is None else y + jnp.sum(bias * rows_for(route.weights[..., None], bias), axis=-2)


class ExpertMLP(nnx.Module):
    """A router, its experts, and perhaps a shared expert.

    Args:
        config: the config of the model.
        router: makes the route of each token, see `jaxlin.nn.routers`.
        gated_shared: whether the shared expert is multiplied by a sigmoid of its own, which is frozen.
        weighs_input: whether the weight of an expert multiplies what the expert reads, in place of what it adds.
        bias: whether each projection of each expert has a bias.
        rngs: for the parameters.
    """

    def __init__(
        self,
        config: ExpertConfig,
        router: Router,
        *,
        gated_shared: bool = False,
        weighs_input: bool = False,
        bias: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        if weighs_input and bias:
            raise TypeError("ExpertMLP: expected biases or weights of what experts read, as no model has both")
        d, shared = config.hidden_size, config.shared_expert_intermediate_size
        self.act, self.count, self.features = config.hidden_act, config.num_experts, config.moe_intermediate_size
        self.weighs_input, self.has_biases = weighs_input, bias
        self.routed_neurons = config.num_experts_per_tok * config.moe_intermediate_size
        self.gate = router
        self.experts = Experts(config, bias=bias, rngs=rngs)
        self.shared_expert = GatedMLP(config, features=shared, rngs=rngs) if shared else None
        self.shared_expert_gate = Linear(d, 1, rngs=rngs) if shared and gated_shared else None

    def __call__(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the experts add to the stream."""
        return self.routed(x, lambda: self.gate(x), ctx)

    def routed(
        self, x: Float[Array, "t *b d"], make_route: Callable[[], Route], ctx: Context
    ) -> Float[Array, "t *b d"]:
        """What the experts add to the stream, where the router may read something else than they do."""
        route = self.frozen_route(make_route, ctx).last(x.shape[0])
        if ctx.evaluation.fold and ctx.is_replay:
            return self.folded(x, route, ctx)
        blocks = blocks_of(route.experts, self.count, math.prod(x.shape[1:-1]))
        neurons = ctx.hook(InnerSite.NEURONS, self.neurons(x, route, blocks, ctx))
        y = self.experts.mix(self.of_experts(neurons), route, blocks)
        return y if self.shared_expert is None else y + self.shared_expert.down_proj(self.of_shared(neurons))

    def frozen_route(self, make_route: Callable[[], Route], ctx: Context) -> Route:
        """The route, of which a replay has no more than it needs: the weights are in the factors of the branches."""
        route = functools.cache(lambda: ctx.hook(InnerSite.ROUTE, make_route()))
        experts = ctx.freeze("experts", lambda: route().experts)
        if self.weighs_input or self.has_biases:
            return Route(experts, ctx.freeze("weights", lambda: route().weights))
        return Route(experts, None if ctx.is_replay else route().weights)

    def neurons(self, x: Float[Array, "t *b d"], route: Route, blocks: Blocks, ctx: Context) -> Float[Array, "t *b n"]:
        """The hidden neurons of the experts of each token, and of the shared expert."""

        def branch(name: str) -> Float[Array, "t *b n"]:
            hidden = self.experts.branch(getattr(self.experts, name), x, route, blocks)
            if self.weighs_input:
                hidden = hidden * rows_for(route.weights[..., None], hidden)
            hidden = hidden.reshape(*x.shape[:-1], math.prod(hidden.shape[-2:]))
            if self.shared_expert is None:
                return hidden
            return jnp.concatenate([hidden, getattr(self.shared_expert, name)(x)], axis=-1)

        weights = functools.partial(self.neuron_weights, x, route)
        return layers.gated(lambda: branch("gate_proj"), lambda: branch("up_proj"), self.act, ctx, weights)

    def neuron_weights(self, x: Float[Array, "t d"], route: Route) -> Float[Array, "t n"]:
        """The weight of each neuron: that of its expert in the route, and that of the shared expert."""
        weights = jnp.ones_like(route.weights) if self.weighs_input else route.weights
        weights = jnp.repeat(weights, self.features, axis=-1)
        if self.shared_expert is None:
            return weights
        gate = self.shared_expert_gate
        shared = jnp.ones_like(weights[:, :1]) if gate is None else jax.nn.sigmoid(gate(x))
        return jnp.concatenate([weights, jnp.repeat(shared, self.shared_expert.features, axis=-1)], axis=-1)

    def of_experts(self, neurons: Float[Array, "t *b n"]) -> Float[Array, "t *b k f"]:
        """The neurons of each expert of each token."""
        return neurons[..., : self.routed_neurons].reshape(*neurons.shape[:-1], -1, self.features)

    def of_shared(self, neurons: Float[Array, "t *b n"]) -> Float[Array, "t *b f"]:
        """The neurons of the shared expert."""
        return neurons[..., self.routed_neurons :]

    def folded(self, x: Float[Array, "t *b d"], route: Route, ctx: Context) -> Float[Array, "t *b d"]:
        """What the experts add in a replay, with one matrix for each token: the sum of those of its experts."""
        factors = ctx.frozen("branches")
        experts, shared = self.experts, self.shared_expert
        of_experts = jax.tree.map(self.of_experts, factors)
        if self.weighs_input:
            of_experts = jax.tree.map(lambda a: a * route.weights[..., None], of_experts)
        of_shared = None if shared is None else jax.tree.map(self.of_shared, factors)

        def matrix(token: tuple[Array, BranchFactors, BranchFactors | None]) -> Float[Array, "d e"]:
            indices, factors, shared_factors = token

            @functools.partial(jax.checkpoint, prevent_cse=False)
            def add_expert(total: Array, expert: tuple[Array, BranchFactors]) -> tuple[Array, None]:
                index, factors = expert
                return total + _matrix(factors, *(p.weight[index].astype(x.dtype) for p in experts.projections)), None

            if shared is None or shared_factors is None:
                total = jnp.zeros((x.shape[-1], x.shape[-1]), x.dtype)
            else:
                total = _matrix(shared_factors, *(p.weight[...].astype(x.dtype) for p in shared.projections))
            return jax.lax.scan(add_expert, total, (indices, factors))[0]

        return fold_tokens(x, (route.experts, of_experts, of_shared), matrix)


def _matrix(
    factors: BranchFactors, gate: Float[Array, "f d"], up: Float[Array, "f d"], down: Float[Array, "d f"]
) -> Float[Array, "d e"]:
    r"""$D\,(\mathrm{diag}(a_g)\, G + \mathrm{diag}(a_u)\, U)$."""
    return folded_matrix(down, factors.paired(lambda: gate, lambda: up))
