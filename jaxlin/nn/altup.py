r"""Alternating updates: several residual streams, of which each layer computes on one and corrects all.

The streams $h_0, \dots, h_{n-1}$ of a token are predicted from each other, $p_i = h_i + \sum_j c_{ij} h_j$; the layer
takes $p_0$ to $a$; and all are corrected by what it has changed, $h_i = p_i + k_i (a - p_0)$. The coefficients are
functions of $h_0$ and of $a$, and frozen as what multiplies the streams. Stream 0 is the residual stream of
`jaxlin.nn.decoder.Decoder`; the others pass it by, as values that blocks share (`jaxlin.nn.block_input`).

Source: Baykal et al., "Alternating Updates for Efficient Transformers", 2023.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn import layers
from jaxlin.nn.block_input import linear_zeros
from jaxlin.nn.context import Context
from jaxlin.nn.kv_cache import KeysAndValues
from jaxlin.nn.modules import Linear, RMSNorm

STREAMS = "streams"
"""The kind of shared values that the other streams are."""

LEAST_SQUARE = 1e-5
"""The least mean square that a projection of a stream is divided by."""


class AltUp(nnx.Module):
    """The coefficients that mix the streams of a token.

    Args:
        d: features of a stream.
        n: the number of streams.
        eps: of the norm before the coefficients.
        rngs: for the parameters.
    """

    def __init__(self, d: int, n: int, eps: float, *, rngs: nnx.Rngs) -> None:
        self.router_norm = RMSNorm(d, eps)
        self.modality_router = Linear(d, n, rngs=rngs)
        self.prediction_coefs, self.correction_coefs = Linear(n, n * n, rngs=rngs), Linear(n, n, rngs=rngs)
        self.correct_output_scale = nnx.Param(jnp.zeros(d))

    def predict(self, streams: Float[Array, "t *b n d"], ctx: Context) -> Float[Array, "t *b n d"]:
        """The streams as they are expected before the layer has run."""
        n = streams.shape[-2]

        def coefficients() -> Float[Array, "t n n"]:
            mixed = self.prediction_coefs(self.modalities(streams[..., 0, :])).reshape(-1, n, n)
            return mixed + jnp.eye(n, dtype=mixed.dtype)[None]

        return layers.product("tij,t...jd->t...id", ctx.freeze("predict", coefficients), streams)

    def correct(
        self, predicted: Float[Array, "t *b n d"], activated: Float[Array, "q *b d"], ctx: Context
    ) -> Float[Array, "q *b n d"]:
        """The streams after the layer has taken the first of the predicted ones to `activated`."""
        factors = ctx.freeze("correct", lambda: 1 + self.correction_coefs(self.modalities(activated)))
        predicted = predicted[-activated.shape[0] :]
        change = (activated - predicted[..., 0, :])[..., None, :]
        return predicted + layers.rows_for(factors, activated)[..., None] * change

    def modalities(self, x: Float[Array, "t d"]) -> Float[Array, "t n"]:
        r"""$\tanh(R\,\mathrm{norm}(x) / d)$."""
        routed = self.modality_router(self.router_norm(x, Context()) * x.shape[-1] ** -1.0)
        return jnp.tanh(layers.at_least_float32(routed)).astype(x.dtype)


class StreamProjections(nnx.Module):
    """A projection for each stream but the first, whose results get the length of the first."""

    def __init__(self, d: int, n: int, *, rngs: nnx.Rngs) -> None:
        self.count = n - 1
        for name in self.names(n):
            setattr(self, name, Linear(d, d, rngs=rngs))

    @staticmethod
    def names(n: int) -> list[str]:
        """The names of the projections of `n` streams."""
        return [f"stream_{i}" for i in range(1, n)]

    def spread(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b m d"]:
        """The other streams, from the first."""
        return self._projected(x, [x] * self.count, ctx)

    def merge(
        self, x: Float[Array, "t *b d"], others: Float[Array, "t *b m d"], ctx: Context
    ) -> Float[Array, "t *b d"]:
        """The mean of the first stream and the projections of the others."""
        projected = self._projected(x, [others[..., i, :] for i in range(self.count)], ctx)
        return (x + jnp.sum(projected, axis=-2)) / (1 + self.count)

    def _projected(self, x: Array, streams: list[Array], ctx: Context) -> Float[Array, "t *b m d"]:
        projections = [getattr(self, name) for name in self.names(1 + self.count)]
        y = jnp.stack([project(h) for project, h in zip(projections, streams, strict=True)], axis=-2)

        def ratio() -> Float[Array, "t m 1"]:
            lengths = _root_mean_square(x)[..., None, :], _root_mean_square(y, LEAST_SQUARE)
            return (lengths[0] / lengths[1]).astype(x.dtype)

        return y * layers.rows_for(ctx.freeze("length", ratio), y)


def other_streams(x: Float[Array, "t *b d"], n: int, ctx: Context) -> Float[Array, "t *b m d"]:
    """The streams beside the first one that an earlier block has left; zeros where only this block runs."""
    if STREAMS in ctx.shared.values:
        return ctx.shared.read(STREAMS).values
    return linear_zeros(x, (*x.shape[:-1], n - 1, x.shape[-1]), x.dtype)


def all_streams(x: Float[Array, "t *b d"], others: Float[Array, "t *b m d"]) -> Float[Array, "t *b n d"]:
    """The first stream and the others."""
    return jnp.concatenate([x[..., None, :], others], axis=-2)


def leave_streams(others: Float[Array, "t *b m d"], ctx: Context) -> None:
    """Let the next block read the streams beside the first one."""
    ctx.shared.write(STREAMS, KeysAndValues(None, others))


def _root_mean_square(x: Float[Array, "*b d"], least: float = 0.0) -> Float[Array, "*b 1"]:
    """The root of the mean square, or of `least` where that is larger; its derivative at 0 is 0."""
    square = jnp.mean(jnp.square(layers.at_least_float32(x)), axis=-1, keepdims=True)
    if least:
        return jnp.sqrt(jnp.maximum(square, least))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
