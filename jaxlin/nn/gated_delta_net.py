r"""Gated DeltaNet: attention whose pattern is that of the gated delta rule (`jaxlin.nn.delta_rule`).

Queries, keys and values pass through a causal convolution, which is linear, and an activation. Those of queries and
keys are within the pattern; of the values the slope is frozen. The output of each head is normed and gated, of which
the inverse root and the gate are frozen.

Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn import attention, layers
from jaxlin.nn.attention import HeadMixer, OutputProjection, split_heads
from jaxlin.nn.context import Context
from jaxlin.nn.delta_rule import Chunked
from jaxlin.nn.layers import at_least_float32, rows_for
from jaxlin.nn.modules import Linear, RMSNorm, normal
from jaxlin.nn.patterns import Pattern
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.sites import InnerSite

UNIT_EPS = 1e-6
"""The number added under the root that makes queries and keys unit vectors; no config has a key for it."""


@dataclass(frozen=True)
class DeltaNetSizes:
    r"""The sizes of a Gated DeltaNet.

    Attributes:
        key_heads: heads of queries and of keys; each serves the same number of value heads.
        value_heads: heads of values, with a pattern each.
        key_dim: features of a query and of a key.
        value_dim: features of a value.
        kernel: the tokens that a convolution reads: one, and those before it.
        tiled: whether value head $h$ reads key head $h \bmod n$, as in GGUF files, and not $⌊h n / H⌋$.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    tiled: bool = False

    @property
    def split_sizes(self) -> dict[str, int]:
        """The numbers of heads, under the keys of config.json: see `jaxlin.nn.config.Config.split_sizes`."""
        return {"linear_num_key_heads": self.key_heads, "linear_num_value_heads": self.value_heads}


class CausalConvolution(nnx.Module):
    r"""A convolution of each feature over the tokens up to its own, $y_t = \sum_j w_j x_{t - K + 1 + j}$: linear."""

    def __init__(self, features: int, kernel: int, *, rngs: nnx.Rngs) -> None:
        self.weight = normal(rngs, features, kernel, std=kernel**-0.5)

    def __call__(self, x: Float[Array, "t *b c"], name: str, ctx: Context) -> Float[Array, "t *b c"]:
        """The convolved `x`; a cache has its last inputs under `name`."""
        weight, tokens = self.weight[...].astype(x.dtype), x.shape[0]
        kernel = weight.shape[1]
        x = ctx.cache.extend_inputs(name, x, kernel - 1)
        terms = [layers.broadcast_last(weight[:, j], x) * x[j : j + tokens] for j in range(kernel)]
        return jnp.sum(jnp.stack(terms), axis=0)


class GatedDeltaNet(HeadMixer):
    r"""Heads that mix values by the gated delta rule.

    With $q, k$ of unit length, $q$ over the root of its features, the strength is $\beta = s\,\sigma(b)$ and the decay
    $g = -e^{A}\,\mathrm{softplus}(a + \delta)$, both of projections of the stream.

    Args:
        features: of the stream.
        sizes: of heads and convolutions.
        act: the activation of queries, keys and values, a key of `jaxlin.nn.layers.SLOPES`.
        norm_eps: the number added under the root of the norm of the heads.
        strength: $s$, the largest strength: with 2 a token may turn what the state has under its key into its negative.
        rngs: for the parameters.
    """

    def __init__(
        self, features: int, sizes: DeltaNetSizes, *, act: str, norm_eps: float, strength: float = 1.0, rngs: nnx.Rngs
    ) -> None:
        keys, values = sizes.key_heads * sizes.key_dim, sizes.value_heads * sizes.value_dim
        self.sizes, self.act, self.strength = sizes, act, strength
        self.q_proj = Linear(features, keys, rngs=rngs)
        self.k_proj = Linear(features, keys, rngs=rngs)
        self.v_proj = Linear(features, values, rngs=rngs)
        self.g_proj = Linear(features, values, rngs=rngs)
        self.a_proj = Linear(features, sizes.value_heads, rngs=rngs)
        self.b_proj = Linear(features, sizes.value_heads, rngs=rngs)
        self.q_conv1d = CausalConvolution(keys, sizes.kernel, rngs=rngs)
        self.k_conv1d = CausalConvolution(keys, sizes.kernel, rngs=rngs)
        self.v_conv1d = CausalConvolution(values, sizes.kernel, rngs=rngs)
        self.A_log = nnx.Param(jnp.zeros(sizes.value_heads))
        self.dt_bias = nnx.Param(jnp.ones(sizes.value_heads))
        self.o_norm = RMSNorm(sizes.value_dim, norm_eps)
        self.o_proj = OutputProjection(values, features, rngs=rngs)

    def pattern(self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context) -> Pattern:
        """The numbers by which the delta rule mixes the values at `x`."""
        pattern = self.delta_rule(x, schedule, ctx)
        is_short = x.shape[0] <= attention.MAX_DENSE_QUERIES and ctx.cache.stop is None
        return pattern.dense(x.dtype) if is_short else pattern

    def delta_rule(self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context) -> Chunked:
        """Queries, keys, strengths and decays. Those of padding leave the state as it is."""
        # The whole pattern is frozen, so that nothing within it needs to be.
        q = self.unit(layers.ungated(self.q_conv1d(self.q_proj(x), "q", ctx), self.act, Context()))
        k = self.unit(layers.ungated(self.k_conv1d(self.k_proj(x), "k", ctx), self.act, Context()))
        a, b = at_least_float32(self.a_proj(x)), at_least_float32(self.b_proj(x))
        rate, offset = (parameter[...].astype(a.dtype)[None] for parameter in (self.A_log, self.dt_bias))
        is_text = ctx.cache.is_text(schedule.positions)[:, None]
        beta = jnp.where(is_text, self.strength * jax.nn.sigmoid(b), 0)
        log_decay = jnp.where(is_text, -jnp.exp(rate) * jax.nn.softplus(a + offset), 0)
        if self.sizes.tiled:
            q, k = (jnp.tile(a, (1, self.sizes.value_heads // self.sizes.key_heads, 1)) for a in (q, k))
        q, k = ctx.hook(InnerSite.QUERIES, q * self.sizes.key_dim**-0.5), ctx.hook(InnerSite.KEYS, k)
        return Chunked(q, k, beta, log_decay)

    def unit(self, x: Float[Array, "t nk"]) -> Float[Array, "t n k"]:
        """Features split into heads, of unit length each."""
        x = at_least_float32(split_heads(x, self.sizes.key_dim))
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + UNIT_EPS)

    @property
    def value_proj(self) -> Linear:
        """`v_proj`."""
        return self.v_proj

    @property
    def value_dim(self) -> int:
        """The features of a value."""
        return self.sizes.value_dim

    def adjusted_values(self, v: Float[Array, "t *b h v"], ctx: Context) -> Float[Array, "t *b h v"]:
        """The values: their projection convolved, times the frozen slope of the activation."""
        convolved = self.v_conv1d(v.reshape(*v.shape[:-2], v.shape[-2] * v.shape[-1]), "v", ctx)
        return split_heads(layers.ungated(convolved, self.act, ctx.within("values")), self.sizes.value_dim)

    def mix(self, pattern: Pattern, values: Float[Array, "t *b h v"], ctx: Context) -> Float[Array, "q *b h v"]:
        """`values` mixed by `pattern`; in a text that goes on, after the state of the earlier tokens."""
        if ctx.cache.stop is None:
            return pattern.mix(values, ctx.evaluation.last)
        assert isinstance(pattern, Chunked)
        _, h, v = values.shape
        before = jnp.zeros((h, self.sizes.key_dim, v), at_least_float32(values).dtype)
        return ctx.cache.update_state(lambda state: pattern.update(values, state), before)

    def gated(self, z: Float[Array, "q *b h v"], x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "q *b h v"]:
        r"""$\mathrm{norm}(z) \odot \mathrm{silu}(g)$, with the inverse root and the gate frozen."""
        gate = ctx.freeze("gate", lambda: jax.nn.silu(split_heads(self.g_proj(x), self.sizes.value_dim)))
        return self.o_norm(z, ctx.within("o_norm")) * rows_for(gate, z)
