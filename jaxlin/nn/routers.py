r"""Routers: from a token to its experts, and to the weight of each.

The index of an expert is piecewise constant and its weight is a nonlinear function of the token, so all of a `Route` is
frozen, and nothing of a router is part of a local linear map. A kind of router is a module with the parameters of its
checkpoints, called as ``router(x)``.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.nn.layers import affine, at_least_float32
from jaxlin.nn.modules import normal, parameter_value


class Route(NamedTuple):
    """The experts that each token passes through.

    Attributes:
        experts: the index of each, int32, ``[t, k]``.
        weights: the factor of what each adds to the stream, ``[t, k]``; None in a replay that has it in other factors.
    """

    experts: Int[Array, "t k"]
    weights: Any

    def last(self, tokens: int) -> "Route":
        """The route of the last `tokens` tokens."""
        return jax.tree.map(lambda a: a[-tokens:], self)


class Router(nnx.Module):
    """Scores $R x$ of all experts, and a rule by which they become a route.

    Args:
        features: those of the stream.
        experts: the number of experts.
        per_token: the number of experts of a token.
        bias: whether the scores have biases.
        rngs: for the parameters.
    """

    def __init__(self, features: int, experts: int, per_token: int, *, bias: bool = False, rngs: nnx.Rngs) -> None:
        self.per_token = per_token
        self.weight = normal(rngs, experts, features)
        self.bias = nnx.Param(jnp.zeros(experts)) if bias else None

    def __call__(self, x: Float[Array, "t d"]) -> Route:
        """The route of each token; the weights have the dtype of `x`."""
        experts, weights = self.choose(at_least_float32(affine(x, self.weight[...], parameter_value(self.bias))))
        return Route(experts.astype(jnp.int32), weights.astype(x.dtype))

    @abc.abstractmethod
    def choose(self, scores: Float[Array, "t e"]) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
        """The experts of each token and their weights, from the scores of all experts."""


class SoftmaxRouter(Router):
    r"""The experts with the largest scores, weighted by the softmax over all experts.

    Args:
        renormalize: whether the weights of a token are divided by their sum; they then sum to 1.
        features, experts, per_token, rngs: see `Router`.

    Source: Shazeer et al., "Outrageously Large Neural Networks", 2017; Jiang et al., "Mixtral of Experts", 2024.
    """

    def __init__(self, features: int, experts: int, per_token: int, *, renormalize: bool, rngs: nnx.Rngs) -> None:
        super().__init__(features, experts, per_token, rngs=rngs)
        self.renormalize = renormalize

    def choose(self, scores: Float[Array, "t e"]) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
        """Softmax over all, then the largest."""
        weights, experts = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), self.per_token)
        return experts, weights / jnp.sum(weights, axis=-1, keepdims=True) if self.renormalize else weights


class TopSoftmaxRouter(Router):
    r"""The experts with the largest scores, weighted by the softmax over these alone."""

    def choose(self, scores: Float[Array, "t e"]) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
        """The largest, then softmax."""
        largest, experts = jax.lax.top_k(scores, self.per_token)
        return experts, jax.nn.softmax(largest, axis=-1)


class SparseMixer(Router):
    r"""Two experts, one after the other, each weighted by a softmax over the experts whose scores are near its own.

    With the largest score $m$ that is left, experts with $(m - s_e) / \max(|s_e|, m) > 2j$ are not near. The expert of
    $m$ is chosen and left out of the second round; the two weights do not sum to 1.

    Args:
        jitter: $j$, which widens the noise of training and stays in inference.
        features, experts, rngs: see `Router`.

    Source: Liu et al., "GRIN: GRadient-INformed MoE", 2024.
    """

    def __init__(self, features: int, experts: int, *, jitter: float, rngs: nnx.Rngs) -> None:
        super().__init__(features, experts, 2, rngs=rngs)
        self.jitter = jitter

    def choose(self, scores: Float[Array, "t e"]) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
        """Two rounds."""
        first, first_weight = self._largest(scores, scores)
        is_first = jnp.arange(scores.shape[-1])[None, :] == first
        second, second_weight = self._largest(scores, jnp.where(is_first, -jnp.inf, scores))
        return jnp.concatenate([first, second], -1), jnp.concatenate([first_weight, second_weight], -1)

    def _largest(
        self, scores: Float[Array, "t e"], remaining: Float[Array, "t e"]
    ) -> tuple[Int[Array, "t 1"], Float[Array, "t 1"]]:
        """The expert with the largest of the `remaining` scores, and its weight among those near it."""
        largest = jnp.max(remaining, axis=-1, keepdims=True)
        distance = (largest - scores) / jnp.maximum(jnp.abs(scores), largest)
        near = jnp.where(distance > 2 * self.jitter, -jnp.inf, remaining)
        weights, expert = jax.lax.top_k(jax.nn.softmax(near, axis=-1), 1)
        return expert, weights
