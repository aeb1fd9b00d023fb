r"""Attention: a pattern, which is frozen, and the mixing of values, which is linear."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxlin.nn import layers
from jaxlin.nn.blockwise import blocked_pattern
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.modules import Linear, parameter_value
from jaxlin.nn.patterns import Dense, Pattern, scores, visible
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.sites import InnerSite

MAX_DENSE_QUERIES = 1024
"""Patterns of no more queries than this are stored as arrays: 4 MiB a head and layer in float32."""


def attention_pattern(
    q: Float[Array, "t h k"],
    k: Float[Array, "s n k"],
    *,
    positions: Int[Array, " t"],
    scale: float,
    first_visible: Int[Array, " t"],
    softcap: float | None = None,
    sinks: Float[Array, " h"] | None = None,
) -> Pattern:
    r"""Attention probabilities $\mathrm{softmax}_s(q_t \cdot k_s\,\text{scale})$ over the keys that a query sees.

    Queries stand at `positions`, key $s$ at position $s$; a query sees the keys from `first_visible` to its own.
    `softcap` $c$ turns a score $z$ into $c \tanh(z / c)$ (Gemma 2). `sinks` are the scores of a key of each head that
    every query sees and that has no value, so that probabilities sum to less than 1 (gpt-oss).
    """
    if q.shape[0] > MAX_DENSE_QUERIES:
        return blocked_pattern(
            q, k, positions=positions, scale=scale, first_visible=first_visible, softcap=softcap, sinks=sinks
        )
    z = scores(q, k, scale, softcap)
    mask = visible(positions, jnp.arange(k.shape[0]), first_visible)
    z = jnp.where(mask[None], z, -jnp.inf)
    if sinks is None:
        return Dense(jax.nn.softmax(z, axis=-1).astype(q.dtype))
    sink = jnp.broadcast_to(sinks.astype(z.dtype)[:, None, None], (*z.shape[:2], 1))
    return Dense(jax.nn.softmax(jnp.concatenate([z, sink], axis=-1), axis=-1)[..., :-1].astype(q.dtype))


def split_heads(x: Float[Array, "*b hk"], k: int) -> Float[Array, "*b h k"]:
    """Features into heads of `k` features each."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // k, k)


class OutputProjection(Linear):
    """The projection that mixes the outputs of the query heads; its columns are those of the heads, in order."""

    def with_heads(self, remaining: Bool[np.ndarray, "l h"]) -> "OutputProjection":
        """This projection, stacked over layers and unpacked, with zero columns for all but the `remaining` heads."""
        weight = self.weight[...]
        columns = remaining.repeat(weight.shape[-1] // remaining.shape[1], axis=1)
        other = jax.tree.map(lambda a: a, self)
        other.weight = nnx.Param(jnp.where(columns[:, None, :], weight, 0))
        return other


class HeadMixer(nnx.Module):
    """What all kinds of attention have in common: heads mix values by a pattern, and a projection mixes the heads.

    The pattern is a frozen factor; values and projections are the linear path. A kind of attention defines both.
    """

    o_proj: OutputProjection

    @abc.abstractmethod
    def pattern(self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context) -> Pattern:
        """How the heads mix the values at `x`."""

    @property
    @abc.abstractmethod
    def value_proj(self) -> Linear:
        """The projection whose rows give the values, head by head."""

    @property
    @abc.abstractmethod
    def value_dim(self) -> int:
        """The features of a value."""

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return jax.eval_shape(lambda: self.o_proj.weight[...]).shape[-1] // self.value_dim

    @property
    def value_heads(self) -> int:
        """The number of values of a token."""
        return jax.eval_shape(lambda: self.value_proj.weight[...]).shape[0] // self.value_dim

    def values(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b n k"]:
        """The values, which the pattern mixes: the linear path through attention."""
        projected = self.value_proj(self.value_input(x, ctx))
        return self.adjusted_values(split_heads(projected, self.value_dim), ctx)

    def value_input(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b c"]:
        """What the projection of values reads, token by token: the input of attention, unless a kind compresses it."""
        return x

    def adjusted_values(self, v: Float[Array, "t *b n k"], ctx: Context) -> Float[Array, "t *b n k"]:
        """The values, from their projection: the same, unless a kind of attention norms, clips or convolves each."""
        return v

    def __call__(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "q *b d"]:
        """The contribution of attention to the stream."""
        pattern = ctx.hook(InnerSite.PATTERN, ctx.freeze("pattern", lambda: self.pattern(x, schedule, ctx)))
        values = ctx.hook(InnerSite.VALUES, self.values(x, ctx))
        z = ctx.hook(InnerSite.HEADS, self.mix(pattern, values, ctx))
        return self.project(ctx.hook(InnerSite.GATED_HEADS, self.gated(z, x, ctx)))

    def project(self, z: Float[Array, "q *b h k"]) -> Float[Array, "q *b d"]:
        """The output projection of the heads."""
        return self.o_proj(z.reshape(*z.shape[:-2], z.shape[-2] * z.shape[-1]))

    def mix(self, pattern: Any, values: Float[Array, "t *b n k"], ctx: Context) -> Float[Array, "q *b h k"]:
        """The outputs of the heads: `values`, and those of earlier tokens, mixed by `pattern`."""
        return pattern.mix(ctx.cache.extend_values(values), ctx.evaluation.last)

    def gated(self, z: Float[Array, "q *b h k"], x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "q *b h k"]:
        """What enters the output projection: the outputs of the heads, if a kind of attention does not gate them."""
        return z

    def write_heads(self, z: Float[Array, "t h k"]) -> Float[Array, "t h d"]:
        """What each head alone makes the output projection add, from what enters it; without the bias."""
        weight = self.o_proj.weight[...].astype(z.dtype)
        return layers.product("thk,dhk->thd", z, weight.reshape(weight.shape[0], *z.shape[1:]))

    def pull_values(self, gradients: Float[Array, "t h k"], ctx: Context) -> Float[Array, "t h k"]:
        """The gradient in the projection of the values, as if each head had its own, from that in its values.

        Attention must have no biases, here and in `read_heads`; `ctx` replays its frozen factors.
        """
        t, h, k = gradients.shape
        groups = jnp.swapaxes(gradients.reshape(t, self.value_heads, -1, k), 1, 2)
        projected = jax.linear_transpose(lambda v: self.adjusted_values(v, ctx), groups)(groups)[0]
        return jnp.swapaxes(projected, 1, 2).reshape(t, h, k)

    def read_heads(self, gradients: Float[Array, "t h k"], ctx: Context) -> Float[Array, "t h d"]:
        """The gradient in the input through the values of each head, from that in its own projection of them."""
        t, h, k = gradients.shape
        weight = self.value_proj.weight[...].astype(gradients.dtype)
        weight = weight.reshape(self.value_heads, k, weight.shape[-1])
        grouped = gradients.reshape(t, self.value_heads, -1, k)
        read = layers.product("tngk,nkc->tngc", grouped, weight).reshape(t, h, -1)
        d = jax.eval_shape(lambda: self.o_proj.weight[...]).shape[0]
        inputs = jax.ShapeDtypeStruct((t, h, d), read.dtype)
        return jax.linear_transpose(lambda x: self.value_input(x, ctx), inputs)(read)[0]


class SoftmaxAttention(HeadMixer):
    """Attention whose pattern is the softmax of scores, which are products of queries and keys.

    Attributes:
        scale: the factor of the scores.
        softcap: the bound of the scores, if they have one.
        sinks: the scores of the sinks, if there are any: see `attention_pattern`.
    """

    scale: float
    softcap: float | None = None
    sinks: nnx.Param | None = None

    @abc.abstractmethod
    def rotated(
        self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys as they enter the scores: after norms, rotation and growth.

        With the factors that `ctx` freezes they are affine in `x`, token by token.
        """

    def pattern(self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context) -> Pattern:
        """The attention probabilities at `x`."""
        # The whole pattern is frozen, so that nothing within it needs to be.
        q, k = self.rotated(x, schedule, Context())
        return attention_pattern(
            ctx.hook(InnerSite.QUERIES, q),
            ctx.cache.extend_keys(ctx.hook(InnerSite.KEYS, k)),
            positions=schedule.positions,
            first_visible=schedule.first_visible,
            scale=self.scale,
            softcap=self.softcap,
            sinks=parameter_value(self.sinks),
        )


class Attention(SoftmaxAttention):
    """Grouped-query attention: `num_attention_heads` queries share `num_key_value_heads` keys and values.

    The pattern is the only frozen factor: queries, keys, their norms and rotation, the mask and the softmax all drop
    out of the linear path with it. A family whose queries and keys differ overrides `queries_and_keys`.

    Args:
        config: the config of the model.
        scale: the factor of the scores; by default one over the root of the features of a head.
        softcap: the bound of the scores, if they have one.
        bias: whether queries, keys and values have biases.
        out_bias: whether the output projection has one.
        sinks: whether each head has a sink, see `attention_pattern`.
        rngs: for the parameters.
    """

    def __init__(
        self,
        config: Config,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        bias: bool = False,
        out_bias: bool = False,
        sinks: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        d, k = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = k
        self.scale = k**-0.5 if scale is None else scale
        self.softcap = softcap
        self.q_proj = Linear(d, heads * k, bias=bias, rngs=rngs)
        self.k_proj = Linear(d, kv_heads * k, bias=bias, rngs=rngs)
        self.v_proj = Linear(d, kv_heads * k, bias=bias, rngs=rngs)
        self.o_proj = OutputProjection(heads * k, d, bias=out_bias, rngs=rngs)
        self.sinks = nnx.Param(jnp.zeros(heads)) if sinks else None

    def rotated(
        self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys after rotation."""
        inv_freq, scale, positions = schedule.inv_freq, schedule.rope_scale, schedule.positions
        q, k = self.queries_and_keys(x, ctx)
        return layers.rope(q, inv_freq, scale, positions), layers.rope(k, inv_freq, scale, positions)

    def queries_and_keys(
        self, x: Float[Array, "t d"], ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation."""
        return self.queries(x), self.split(self.k_proj(x))

    def queries(self, x: Float[Array, "t d"]) -> Float[Array, "t h k"]:
        """Queries before norms and rotation."""
        return self.split(self.q_proj(x))

    @property
    def value_proj(self) -> Linear:
        """`v_proj`."""
        return self.v_proj

    @property
    def value_dim(self) -> int:
        """`head_dim`."""
        return self.head_dim

    def split(self, x: Float[Array, "t *b hk"]) -> Float[Array, "t *b h k"]:
        """Features into heads."""
        return split_heads(x, self.head_dim)


class HeadNormAttention(Attention):
    """`Attention` whose queries and keys are normed in each head, before rotation.

    Args:
        norm: makes the norm of a head from its number of features.
    """

    def __init__(self, config: Config, *, norm: Callable[[int], Any], rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(config, rngs=rngs, **options)
        self.q_norm, self.k_norm = norm(config.head_dim), norm(config.head_dim)

    def queries_and_keys(
        self, x: Float[Array, "t d"], ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation, normed."""
        q, k = super().queries_and_keys(x, ctx)
        return self.q_norm(q, ctx.within("q_norm")), self.k_norm(k, ctx.within("k_norm"))
