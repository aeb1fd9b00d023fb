"""The parameters of a decoder: Flax modules used as immutable pytrees, with Hugging Face's names and shapes.

A weight is ``[out, in]`` as torch stores it. It stays in the dtype of its file and is widened to the dtype of the
activations where it is used, so that one layer at a time is wide.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.nn import layers
from jaxlin.nn.attention import attention_pattern
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.folding import elementwise_derivatives, fold, with_derivative
from jaxlin.nn.patterns import Pattern
from jaxlin.nn.sites import InnerSite


class Schedule(NamedTuple):
    """What a block is told besides the stream: what differs from layer to layer and is no parameter, and positions.

    Attributes:
        inv_freq: the rotary frequencies, radians a token; zeros rotate nothing.
        rope_scale: the factor of cosine and sine.
        window: how many tokens a query sees, itself included.
        positions: the position of each token.
    """

    inv_freq: Float[Array, " r"]
    rope_scale: Float[Array, ""]
    window: Int[Array, ""]
    positions: Int[Array, " t"]


def normal(rngs: nnx.Rngs, *shape: int, std: float = 0.02) -> nnx.Param:
    """A parameter drawn from a normal distribution (transformers' initializer_range)."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape))


class Linear(nnx.Module):
    """`jaxlin.nn.layers.affine` with its weight, ``[out, in]``, and its bias if it has one."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False, rngs: nnx.Rngs) -> None:
        self.weight = normal(rngs, out_features, in_features)
        self.bias = nnx.Param(jnp.zeros(out_features)) if bias else None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """`x` through it."""
        return layers.affine(x, self.weight[...], value(self.bias))


class Embedding(nnx.Module):
    """The rows of ``weight`` are the embeddings of the tokens."""

    def __init__(self, tokens: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.weight = normal(rngs, tokens, features)


class Unembedding(nnx.Module):
    """The rows of ``weight`` give the logits of the tokens; it is None where they are those of the embeddings."""

    def __init__(self, config: Config, *, bias: bool, rngs: nnx.Rngs) -> None:
        shape = config.vocab_size, config.hidden_size
        self.weight = None if config.tie_word_embeddings else normal(rngs, *shape)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size)) if bias else None


class RMSNorm(nnx.Module):
    """`jaxlin.nn.layers.rms_norm` with its weight."""

    def __init__(self, features: int, eps: float) -> None:
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(features))

    def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Float[Array, "*b d"]:
        """`x`, normed."""
        return layers.rms_norm(x, self.weight[...], self.eps, ctx)


class LayerNorm(nnx.Module):
    """`jaxlin.nn.layers.layer_norm` with its weight and bias, or with neither."""

    def __init__(self, features: int, eps: float, *, affine: bool = True) -> None:
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(features)) if affine else None
        self.bias = nnx.Param(jnp.zeros(features)) if affine else None

    def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Float[Array, "*b d"]:
        """`x`, normed."""
        return layers.layer_norm(x, value(self.weight), value(self.bias), self.eps, ctx)


class Attention(nnx.Module):
    """Grouped-query attention: `num_attention_heads` queries share `num_key_value_heads` keys and values.

    The pattern is the only frozen factor: queries, keys, their norms and rotation, the mask and the softmax all drop
    out of the linear path with it. A family whose queries and keys differ overrides `queries_and_keys`.
    """

    def __init__(
        self,
        config: Config,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        bias: bool = False,
        out_bias: bool = False,
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
        self.o_proj = Linear(heads * k, d, bias=out_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "q *b d"]:
        """What attention gives, before it is added."""
        pattern = ctx.hook(InnerSite.PATTERN, ctx.freeze("pattern", lambda: self.pattern(x, schedule, ctx)))
        values = ctx.cache.extend_values(ctx.hook(InnerSite.VALUES, self.values(x, ctx)))
        z = ctx.hook(InnerSite.HEADS, pattern.mix(values, ctx.evaluation.last))
        return self.o_proj(z.reshape(*z.shape[:-2], z.shape[-2] * z.shape[-1]))

    def pattern(self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context) -> Pattern:
        """The attention probabilities at `x`."""
        q, k = self.rotated(x, schedule)
        positions, window = schedule.positions, schedule.window
        k = ctx.cache.extend_keys(k)
        return attention_pattern(q, k, positions=positions, scale=self.scale, window=window, softcap=self.softcap)

    def rotated(
        self, x: Float[Array, "t d"], schedule: Schedule
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys after rotation."""
        inv_freq, scale, positions = schedule.inv_freq, schedule.rope_scale, schedule.positions
        q, k = self.queries_and_keys(x)
        return layers.rope(q, inv_freq, scale, positions), layers.rope(k, inv_freq, scale, positions)

    def queries_and_keys(self, x: Float[Array, "t d"]) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation."""
        return self.split(self.q_proj(x)), self.split(self.k_proj(x))

    def values(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b n k"]:
        """What is mixed: the linear path through attention."""
        return self.split(self.v_proj(x))

    def split(self, x: Float[Array, "t *b hk"]) -> Float[Array, "t *b h k"]:
        """Features into heads."""
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.head_dim, self.head_dim)


class HeadNormAttention(Attention):
    """`Attention` whose queries and keys are normed in each head, before rotation.

    Args:
        norm: makes the norm of a head from its number of features.
    """

    def __init__(self, config: Config, *, norm: Callable[[int], Any], rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(config, rngs=rngs, **options)
        self.q_norm, self.k_norm = norm(config.head_dim), norm(config.head_dim)

    def queries_and_keys(self, x: Float[Array, "t d"]) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation, normed."""
        q, k = super().queries_and_keys(x)
        # The whole pattern is frozen, so that nothing within it needs to be.
        return self.q_norm(q, Context()), self.k_norm(k, Context())


class GatedMLP(nnx.Module):
    """`down_proj(act(gate_proj(x)) * up_proj(x))`."""

    def __init__(self, config: Config, *, bias: bool = False, rngs: nnx.Rngs) -> None:
        d, f = config.hidden_size, config.intermediate_size
        self.act = config.hidden_act
        self.gate_proj = Linear(d, f, bias=bias, rngs=rngs)
        self.up_proj = Linear(d, f, bias=bias, rngs=rngs)
        self.down_proj = Linear(f, d, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the MLP gives, before it is added."""
        if ctx.evaluation.fold and ctx.is_replay:
            gate, up = self.gate_proj.weight, self.up_proj.weight
            branches = ctx.frozen("branches").paired(lambda: gate[...], lambda: up[...])
            return fold(x, self.down_proj.weight[...], branches)
        if ctx.evaluation.fold:
            return with_derivative(self, x, lambda mlp, x: mlp(x, Context()), GatedMLP.derivative)
        hidden = layers.gated(lambda: self.gate_proj(x), lambda: self.up_proj(x), self.act, ctx)
        return self.down_proj(ctx.hook(InnerSite.NEURONS, hidden))

    def derivative(self, x: Float[Array, "t d"], v: Float[Array, "t *b d"]) -> Float[Array, "t *b d"]:
        """The derivative at `x` along `v`, folded."""

        def hidden(g: Array, u: Array) -> Array:
            return layers.gated(lambda: g, lambda: u, self.act, Context())

        of_gate, of_up = elementwise_derivatives(hidden, self.gate_proj(x), self.up_proj(x))
        branches = [(of_gate, self.gate_proj.weight[...]), (of_up, self.up_proj.weight[...])]
        return fold(v, self.down_proj.weight[...], branches)


def value(parameter: nnx.Param | None) -> Array | None:
    """The value of a parameter that may be absent, or that `jaxlin.nn.biases.without_biases` has emptied."""
    return None if parameter is None else parameter.get_value()
