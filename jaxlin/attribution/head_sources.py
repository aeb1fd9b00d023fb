r"""What each attention head brings to a logit from each position: $p_{hts}\,(g_h \cdot v_s)$ in every layer.

$p$ is the held pattern, $t$ the position read, $v$ the values, and $g_h$ the slope of the target in what the head gives
at $t$, before the output projection. Over the positions $s$ it sums to what the head contributes.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.attention import row_of
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.hold import Hold, Replay
from jaxlin.nn.layers import HIGHEST


def sources(
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

    def make_hold(row: Any) -> Hold:
        factors, slopes = row
        return _Sources(factors, slopes, position, rule=frozen.rule)

    rows = (frozen.layers, slopes)
    return model.scan(x, make_hold, rows, keep=lambda hold: hold.sites["sources"])[1]


class _Sources(Replay):
    """A replay that keeps what the heads of a block bring from each position: values are seen before they are mixed."""

    def __init__(self, values: Any, slopes: Float[Array, "h k"], position: Any, **options: Any) -> None:
        super().__init__(values, **options)
        self.slopes, self.position = slopes, position

    def past(self, name: str, new: Float[Array, "s n k"]) -> Float[Array, "s n k"]:
        """The values of all positions, as they are."""
        n, k = new.shape[1:]
        pulled = jnp.einsum("ngk,snk->ngs", self.slopes.reshape(n, -1, k), new, precision=HIGHEST)
        self.sites["sources"] = row_of(self.kept("pattern"), self.position) * pulled.reshape(-1, new.shape[0])
        return new
