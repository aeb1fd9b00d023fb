r"""Gated MLPs of which only the neurons with the largest gates are active: about a share $1 - s$ of them.

The gate is cut at a threshold that this share of a normal distribution exceeds, with the mean and the deviation of the
token's own gates: $\mathrm{act}(\mathrm{relu}(g - \bar g - \Phi^{-1}(s)\,\mathrm{std}(g))) \odot u$. Mean and deviation
depend on all gates, so the whole activation over $g$ is the slope of the freeze rules.
"""

from statistics import NormalDist

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn import layers
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.sites import InnerSite


class TopKGatedMLP(GatedMLP):
    """`GatedMLP` whose gate is cut at a threshold.

    Args:
        config: the config of the model.
        features: the number of hidden neurons.
        sparsity: $s$, the share of neurons that are off, above 0 and below 1.
        rngs: for the parameters.
    """

    def __init__(self, config: Config, *, features: int, sparsity: float, rngs: nnx.Rngs) -> None:
        super().__init__(config, features=features, rngs=rngs)
        self.deviations = NormalDist().inv_cdf(sparsity)

    def __call__(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """The contribution of the MLP to the stream."""
        if ctx.evaluation.fold and not ctx.is_replay:
            # A neuron depends on the gates of all, so its derivative is no product of its own row.
            return self.down(ctx.hook(InnerSite.NEURONS, self.neurons(x, ctx)))
        return super().__call__(x, ctx)

    def neurons(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b f"]:
        """The product of both branches, of which most are 0."""
        return layers.gated(lambda: self.gate_proj(x), lambda: self.up_proj(x), self.slope, ctx)

    def slope(self, g: Float[Array, "t f"], u: Float[Array, "t f"]) -> Float[Array, "t f"]:
        """The activation of the gates that remain, over the gates; 0 where a gate is 0."""
        variance = jnp.var(g, axis=-1, keepdims=True)
        deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
        remaining = jax.nn.relu(g - jnp.mean(g, axis=-1, keepdims=True) - deviation * self.deviations)
        act = remaining * layers.SLOPES[self.act](remaining)
        return jnp.where(g == 0, 0, act / jnp.where(g == 0, 1, g))
