r"""What each attention head brings to a logit from each position: $p_{hts}\,(g_h \cdot v_s)$ in every layer.

$p$ is the held pattern, $t$ the position read, $v$ the values, and $g_h$ the slope of the target in what the head gives
at $t$, before the output projection. Over the positions $s$ it sums to what the head contributes.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import InnerSite


def contributions_by_source(
    model: Decoder,
    frozen: FrozenFactors,
    x: Float[Array, "t d"],
    slopes: Float[Array, "l h k"],
    position: Any,
) -> Float[Array, "l h t"]:
    """What the heads at `position` bring from each position, by one pass of the held model at its own input.

    Args:
        model: the decoder.
        frozen: what is held at `x`.
        x: the input embeddings.
        slopes: of the target in each head, through its own layer's output alone.
        position: where the target is read.
    """

    def make_context(row: Any) -> Context:
        factors, slopes = row

        def pulled(values: Float[Array, "t n k"]) -> Float[Array, "h t"]:
            n, k = values.shape[1:]
            grouped = slopes.reshape(n, -1, k)
            return jnp.einsum("ngk,snk->ngs", grouped, values, precision=HIGHEST).reshape(-1, values.shape[0])

        return Context(Replay(factors), Hooks(readers={InnerSite.VALUES: pulled}))

    def collect(ctx: Context) -> Float[Array, "h t"]:
        return ctx.hooks.values[InnerSite.PATTERN].row(position) * ctx.hooks.values[InnerSite.VALUES]

    return model.scan(x, make_context, (frozen.layers, slopes), collect=collect)[1]
