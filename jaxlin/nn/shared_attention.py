"""Attention whose keys and values later layers read in place of their own: Gemma 3n's and 4's.

The values of the layer they belong to are normed, and are a linear path that passes the stream by: see
`jaxlin.nn.block_input` and `Decoder.is_cut`.
"""

import functools
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn import layers
from jaxlin.nn.attention import HeadNormAttention, attention_pattern
from jaxlin.nn.block_input import linear_zeros
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.modules import Linear, RMSNorm
from jaxlin.nn.patterns import Pattern
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.sites import InnerSite

SLIDING, FULL, SHARED = "sliding_attention", "full_attention", "shared_"
"""The types of attention, and what the kind of a layer that reads an earlier one's values begins with."""


class ValueNormAttention(HeadNormAttention):
    """Queries, keys and values are normed in each head, values without a weight; scores are not scaled.

    Args:
        config: the config of the layers that are like this one.
        bias: whether the projections have biases.
        keys_are_values: whether one projection gives keys and values.
        rngs: for the parameters.
    """

    def __init__(self, config: Config, *, bias: bool = False, keys_are_values: bool = False, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        super().__init__(config, norm=norm, scale=1.0, bias=bias, out_bias=bias, rngs=rngs)
        self.v_norm = norm(self.head_dim, affine=False)
        if keys_are_values:
            self.v_proj = None

    @property
    def value_proj(self) -> Linear:
        """That of keys and values, if there is one for both."""
        return self.k_proj if self.v_proj is None else self.v_proj

    def adjusted_values(self, v: Float[Array, "t *b n k"], ctx: Context) -> Float[Array, "t *b n k"]:
        """The values, normed: the inverse root is frozen, because values are the linear path through attention."""
        return self.v_norm(v, ctx.within("v_norm"))


class SourceAttention(ValueNormAttention):
    """Attention whose keys and values later layers of its kind read; its other arguments are those of its base."""

    def __init__(self, config: Config, kind: str, **options: object) -> None:
        super().__init__(config, **options)  # type: ignore[arg-type]
        self.kind = kind

    def mix(self, pattern: Any, values: Float[Array, "t *b n k"], ctx: Context) -> Float[Array, "q *b h k"]:
        """As in `HeadMixer`; later layers get the values, and the keys where these are computed."""
        z = super().mix(pattern, values, ctx)
        ctx.shared.write(self.kind, ctx.cache.extended)
        return z


class SharedAttention(ValueNormAttention):
    """Attention with queries alone, which reads the keys and values of an earlier layer of its kind."""

    def __init__(self, config: Config, kind: str, **options: object) -> None:
        super().__init__(config, **options)  # type: ignore[arg-type]
        self.kind, self.kv_heads = kind, config.num_key_value_heads
        self.k_proj = self.v_proj = self.k_norm = self.v_norm = None

    def rotated(
        self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries after rotation; it has no keys."""
        q = self.q_norm(self.split(self.q_proj(x)), ctx.within("q_norm"))
        return layers.rope(q, schedule.inv_freq, schedule.rope_scale, schedule.positions), q[:, :0]

    def pattern(self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context) -> Pattern:
        """The attention probabilities at `x` over the keys of the earlier layer."""
        q, _ = self.rotated(x, schedule, Context())
        return attention_pattern(
            ctx.hook(InnerSite.QUERIES, q),
            ctx.shared.read(self.kind).keys,
            positions=schedule.positions,
            first_visible=schedule.first_visible,
            scale=self.scale,
        )

    def values(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "s *b n k"]:
        """The values of the earlier layer; zeros where only this block runs."""
        if self.kind in ctx.shared.values:
            return ctx.shared.read(self.kind).values
        return linear_zeros(x, (*x.shape[:-1], self.kv_heads, self.head_dim), x.dtype)

    def mix(self, pattern: Any, values: Float[Array, "s *b n k"], ctx: Context) -> Float[Array, "q *b h k"]:
        """The outputs of the heads: the values of all tokens mixed by `pattern`."""
        return pattern.mix(values, ctx.evaluation.last)


def value_norm_attention(config: Config, kind: str, **options: object) -> ValueNormAttention:
    """The attention of a layer: alone, or with values that later layers read, or that it reads itself.

    Args:
        config: the config of the layers that are like this one.
        kind: the type of its attention, after ``shared_`` if it reads the values of an earlier layer.
        options: as of `ValueNormAttention`.
    """
    if not config.value_layers:
        return ValueNormAttention(config, **options)  # type: ignore[arg-type]
    if kind.startswith(SHARED):
        return SharedAttention(config, kind.removeprefix(SHARED), **options)
    return SourceAttention(config, kind, **options)
