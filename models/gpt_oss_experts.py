"""The experts of gpt-oss, whose branches are clipped: see `jaxlin.models.gpt_oss`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn.experts import ExpertConfig, ExpertLinear, ExpertMLP
from jaxlin.nn.layers import rows_for
from jaxlin.nn.modules import parameter_value
from jaxlin.nn.routers import Route, TopSoftmaxRouter


@dataclass(frozen=True)
class ClippedSlope:
    r"""The slope of a clipped branch, $\sigma(\alpha \min(g, L))$, with the ratios by which both branches are clipped.

    Attributes:
        alpha: $\alpha$, the gain of the sigmoid.
        limit: $L > 1$, so that $u + 1$ is clipped to an interval with 0 in it, and a ratio of it exists.
    """

    alpha: float
    limit: float

    def __call__(self, g: Float[Array, "t *b n"], u: Float[Array, "t *b n"]) -> Float[Array, "t *b n"]:
        r"""The value over $g \odot u$, where $u$ has the 1 in it."""
        low, high = 1 - self.limit, 1 + self.limit
        clipped = jnp.minimum(1, self.limit / jnp.maximum(g, self.limit))
        clipped_up = jnp.minimum(high / jnp.maximum(u, high), low / jnp.minimum(u, low))
        return jax.nn.sigmoid(self.alpha * jnp.minimum(g, self.limit)) * clipped * clipped_up


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(ExpertConfig):
    """`ExpertConfig`, whether attention has biases, and the slope of the experts."""

    attention_bias: bool
    slope: ClippedSlope


class One(nnx.Module):
    """The 1 that is added to the up branch of each expert, as a bias."""

    def __init__(self, experts: int) -> None:
        self.bias = nnx.Param(jnp.ones((experts, 1)))


class UpProjection(ExpertLinear):
    """The projection to the up branch, to which 1 is added."""

    def __init__(self, experts: int, in_features: int, out_features: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(experts, in_features, out_features, bias=True, rngs=rngs)
        self.one = One(experts)

    def biases(self, route: Route, like: Float[Array, "t *b k i"]) -> Float[Array, "t *c k o"] | None:
        """The bias of each expert of each token, and 1."""
        bias, one = super().biases(route, like), parameter_value(self.one.bias)
        return None if bias is None or one is None else bias + rows_for(one[route.experts].astype(like.dtype), like)


class GptOssMLP(ExpertMLP):
    """Experts with biases, whose branches are clipped."""

    def __init__(self, config: GptOssConfig, *, rngs: nnx.Rngs) -> None:
        d, experts = config.hidden_size, config.num_experts
        router = TopSoftmaxRouter(d, experts, config.num_experts_per_tok, bias=True, rngs=rngs)
        super().__init__(config, router, bias=True, rngs=rngs)
        self.experts.up_proj = UpProjection(experts, d, config.moe_intermediate_size, rngs=rngs)
        self.act = config.slope
