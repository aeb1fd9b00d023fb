"""Attention whose heads are gated: the output of each is multiplied by a sigmoid of a projection of the stream."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn.attention import HeadNormAttention
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.layers import rows_for
from jaxlin.nn.modules import Linear


class GatedHeadNormAttention(HeadNormAttention):
    """`HeadNormAttention` with a gate for each feature of each head, whose sigmoid is frozen.

    `q_proj` has the rows of queries and gates, head by head: first the query of a head, then its gate. Source: Qiu et
    al., "Gated Attention for Large Language Models", 2025.
    """

    def __init__(
        self, config: Config, *, norm: Callable[[int], Any], bias: bool = False, rngs: nnx.Rngs, **options: Any
    ) -> None:
        super().__init__(config, norm=norm, bias=bias, rngs=rngs, **options)
        rows = 2 * config.num_attention_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, rows, bias=bias, rngs=rngs)

    def queries(self, x: Float[Array, "t d"]) -> Float[Array, "t h k"]:
        """The first half of the rows of each head."""
        return self.split(self.q_proj(x))[..., 0::2, :]

    def gated(self, z: Float[Array, "q *b h k"], x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "q *b h k"]:
        r"""$z \odot \sigma(g)$, with the other half of the rows as $g$."""
        gate = ctx.freeze("gate", lambda: jax.nn.sigmoid(self.split(self.q_proj(x))[..., 1::2, :]))
        return z * rows_for(gate, z)
