r"""Routers of Llama 4, DeepSeek V3 and Mistral 4: sigmoids in place of a softmax, and experts in groups."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.nn.routers import Router

SMALLEST_SUM = 1e-20
"""What is added to the sum by which weights are divided."""


class SigmoidRouter(Router):
    """The experts with the largest scores, each weighted by the sigmoid of its own.

    Source: the Llama 4 model card, 2025.
    """

    def choose(self, scores: Float[Array, "t e"]) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
        """The largest, then the sigmoid."""
        largest, experts = jax.lax.top_k(scores, self.per_token)
        return experts, jax.nn.sigmoid(largest)


class GroupRouter(Router):
    r"""The experts with the largest probabilities in the groups whose two largest have the largest sum.

    With the probabilities $p$, the softmax of the scores, the weights are $\lambda p_e / \sum p_e$, or $\lambda p_e$.

    Args:
        groups: the groups of experts, which are neighbours.
        chosen_groups: those among whose experts a token chooses.
        renormalize: whether the weights are divided by their sum.
        scale: $\lambda$.
        features, experts, per_token, rngs: see `Router`.

    Source: DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, section 2.2.
    """

    def __init__(
        self,
        features: int,
        experts: int,
        per_token: int,
        *,
        groups: int,
        chosen_groups: int,
        renormalize: bool,
        scale: float,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(features, experts, per_token, rngs=rngs)
        self.groups, self.chosen_groups = groups, chosen_groups
        self.renormalize, self.scale = renormalize, scale

    def probabilities(self, scores: Float[Array, "t e"]) -> Float[Array, "t e"]:
        """$p$."""
        return jax.nn.softmax(scores, axis=-1)

    def preferences(self, probabilities: Float[Array, "t e"]) -> Float[Array, "t e"]:
        """The numbers of which the largest are chosen."""
        return probabilities

    def choose(self, scores: Float[Array, "t e"]) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
        """Groups, then their experts."""
        p = self.probabilities(scores)
        preferences = self.preferences(p)
        grouped = preferences.reshape(len(p), self.groups, -1)
        best_two, _ = jax.lax.top_k(grouped, 2)
        _, groups = jax.lax.top_k(jnp.sum(best_two, axis=-1), self.chosen_groups)
        is_chosen = jnp.any(jnp.arange(self.groups)[None, :, None] == groups[:, None, :], axis=-1)
        available = jnp.where(is_chosen[..., None], grouped, -jnp.inf).reshape(p.shape)
        _, experts = jax.lax.top_k(available, self.per_token)
        weights = jnp.take_along_axis(p, experts, axis=-1)
        if self.renormalize:
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + SMALLEST_SUM)
        return experts, weights * self.scale


class SigmoidGroupRouter(GroupRouter):
    r"""`GroupRouter` with sigmoids as probabilities; a correction of each expert counts where they are chosen.

    The correction balances how often experts are chosen, and is no part of their weights.

    Source: DeepSeek-AI, "DeepSeek-V3 Technical Report", arXiv 2412.19437, section 2.1.
    """

    def __init__(self, features: int, experts: int, per_token: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(features, experts, per_token, rngs=rngs, **options)
        self.e_score_correction_bias = nnx.Param(jnp.zeros(experts))

    def probabilities(self, scores: Float[Array, "t e"]) -> Float[Array, "t e"]:
        """The sigmoid of each score."""
        return jax.nn.sigmoid(scores)

    def preferences(self, probabilities: Float[Array, "t e"]) -> Float[Array, "t e"]:
        """The probabilities, corrected."""
        return probabilities + self.e_score_correction_bias[...].astype(probabilities.dtype)[None, :]
