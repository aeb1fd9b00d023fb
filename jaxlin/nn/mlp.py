"""MLPs, gated and ungated: hidden neurons that are linear in the stream once their factors are frozen."""

import abc

from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn import layers
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.folding import Branches, elementwise_derivatives, fold, with_derivative
from jaxlin.nn.modules import Linear
from jaxlin.nn.sites import InnerSite


class MLP(nnx.Module):
    """Hidden neurons and the projection that mixes them; a kind of MLP defines how the neurons are computed."""

    @property
    @abc.abstractmethod
    def down(self) -> Linear:
        """The last projection."""

    @abc.abstractmethod
    def neurons(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b f"]:
        """The hidden neurons."""

    @abc.abstractmethod
    def frozen_branches(self, ctx: Context) -> Branches:
        """The frozen factors of a replay, each with the weight of the branch that it multiplies."""

    @abc.abstractmethod
    def derivative_branches(self, x: Float[Array, "t d"]) -> Branches:
        """The derivatives of the neurons at `x` with respect to each branch, with the weight of the branch."""

    def __call__(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """The contribution of the MLP to the stream."""
        if ctx.evaluation.fold and ctx.is_replay:
            return fold(x, self.down.weight[...], self.frozen_branches(ctx))
        if ctx.evaluation.fold:
            return with_derivative(self, x, lambda mlp, x: mlp(x, Context()), MLP.derivative)
        return self.down(ctx.hook(InnerSite.NEURONS, self.neurons(x, ctx)))

    def derivative(self, x: Float[Array, "t d"], v: Float[Array, "t *b d"]) -> Float[Array, "t *b d"]:
        """The derivative at `x` along `v`, folded."""
        return fold(v, self.down.weight[...], self.derivative_branches(x))


class GatedMLP(MLP):
    """`down_proj(act(gate_proj(x)) * up_proj(x))`.

    Args:
        config: the config of the model.
        features: the number of hidden neurons; by default `intermediate_size`.
        bias: whether the projections have biases.
        rngs: for the parameters.
    """

    def __init__(self, config: Config, *, features: int | None = None, bias: bool = False, rngs: nnx.Rngs) -> None:
        d, f = config.hidden_size, config.intermediate_size if features is None else features
        self.act, self.features = config.hidden_act, f
        self.gate_proj = Linear(d, f, bias=bias, rngs=rngs)
        self.up_proj = Linear(d, f, bias=bias, rngs=rngs)
        self.down_proj = Linear(f, d, bias=bias, rngs=rngs)

    @property
    def down(self) -> Linear:
        """`down_proj`."""
        return self.down_proj

    @property
    def projections(self) -> tuple[Linear, Linear, Linear]:
        """Gate, up and down."""
        return self.gate_proj, self.up_proj, self.down_proj

    def neurons(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b f"]:
        """The product of both branches."""
        return layers.gated(lambda: self.gate_proj(x), lambda: self.up_proj(x), self.act, ctx)

    def frozen_branches(self, ctx: Context) -> Branches:
        """One branch or both, as the freeze rule has it."""
        gate, up = self.gate_proj.weight, self.up_proj.weight
        return ctx.frozen("branches").paired(lambda: gate[...], lambda: up[...])

    def derivative_branches(self, x: Float[Array, "t d"]) -> Branches:
        """Both branches."""

        def neurons(g: Array, u: Array) -> Array:
            return layers.gated(lambda: g, lambda: u, self.act, Context())

        by_gate, by_up = elementwise_derivatives(neurons, self.gate_proj(x), self.up_proj(x))
        return [(by_gate, self.gate_proj.weight[...]), (by_up, self.up_proj.weight[...])]


class UngatedMLP(MLP):
    """`fc2(act(fc1(x)))`, with biases."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
        self.act = config.hidden_act
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True, rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True, rngs=rngs)

    @property
    def down(self) -> Linear:
        """`fc2`."""
        return self.fc2

    def neurons(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b f"]:
        """The activation, whose slope is frozen."""
        return layers.ungated(self.fc1(x), self.act, ctx)

    def frozen_branches(self, ctx: Context) -> Branches:
        """The only branch."""
        return [(ctx.frozen("slope"), self.fc1.weight[...])]

    def derivative_branches(self, x: Float[Array, "t d"]) -> Branches:
        """The only branch."""
        (slope,) = elementwise_derivatives(lambda h: layers.ungated(h, self.act, Context()), self.fc1(x))
        return [(slope, self.fc1.weight[...])]
