"""Attention of models in which some layers do not rotate queries and keys ("NoPE")."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.nn.attention import Attention
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.layers import query_growth, rms_norm
from jaxlin.nn.schedule import Schedule


class NoPEAttention(Attention):
    """Attention that norms queries and keys in layers that rotate, and lets queries grow in the others.

    The norms have no weights and come after the rotation. A layer does not rotate if its frequencies are zero, so that
    all layers are alike.

    Args:
        config: the config of the model.
        eps: the number added under the root of the norms; None for no norms.
        beta, length: of `jaxlin.nn.layers.query_growth`, with positions that are counted from 1.
        options: as of `Attention`.
    """

    def __init__(self, config: Config, *, eps: float | None, beta: float, length: int, **options: Any) -> None:
        super().__init__(config, **options)
        self.eps, self.beta, self.length = eps, beta, length

    def rotated(
        self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys after rotation, normed or grown."""
        q, k = super().rotated(x, schedule, ctx)
        grown = q * query_growth(schedule.positions + 1, self.beta, self.length, q)
        rotates = jnp.any(schedule.inv_freq > 0)

        def normed(x: Float[Array, "t h k"], name: str) -> Float[Array, "t h k"]:
            return x if self.eps is None else rms_norm(x, None, self.eps, ctx.within(name))

        return jnp.where(rotates, normed(q, "q_norm"), grown), jnp.where(rotates, normed(k, "k_norm"), k)
