"""The parameters of a decoder: Flax modules used as immutable pytrees, with Hugging Face's names and shapes.

A weight is ``[out, in]`` as torch stores it. It stays in the dtype of its file and is widened to the dtype of the
activations where it is used, so that one layer at a time is wide.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn import layers
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context

Model = TypeVar("Model")


class UndrawnRngs(nnx.Rngs):
    """The `rngs` of a model of which only the shapes are asked for: `normal` gives zeros.

    Most of the time of tracing a model's construction would be that of its random numbers.
    """


def without_values(build: Callable[[nnx.Rngs], Model]) -> Model:
    """The model that `build` makes, with a `jax.ShapeDtypeStruct` in the place of each array."""
    return jax.eval_shape(lambda: build(UndrawnRngs(0)))


def normal(rngs: nnx.Rngs, *shape: int, std: float = 0.02) -> nnx.Param:
    """A parameter drawn from a normal distribution (transformers' initializer_range)."""
    if isinstance(rngs, UndrawnRngs):
        return nnx.Param(jnp.zeros(shape))
    return nnx.Param(std * jax.random.normal(rngs.params(), shape))


class Linear(nnx.Module):
    """`jaxlin.nn.layers.affine` with its weight, ``[out, in]``, and its bias if it has one."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False, rngs: nnx.Rngs) -> None:
        self.weight = normal(rngs, out_features, in_features)
        self.bias = nnx.Param(jnp.zeros(out_features)) if bias else None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        r"""$W x + \beta$."""
        return layers.affine(x, self.weight[...], parameter_value(self.bias))


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
    """`jaxlin.nn.layers.rms_norm` with its weight, or without one."""

    def __init__(self, features: int, eps: float, *, affine: bool = True) -> None:
        self.eps = eps
        self.weight: Any = nnx.Param(jnp.ones(features)) if affine else None

    def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Float[Array, "*b d"]:
        """`x`, normed."""
        return layers.rms_norm(x, parameter_value(self.weight), self.eps, ctx)


class LayerNorm(nnx.Module):
    """`jaxlin.nn.layers.layer_norm` with its weight and bias, or with neither."""

    def __init__(self, features: int, eps: float, *, affine: bool = True) -> None:
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(features)) if affine else None
        self.bias = nnx.Param(jnp.zeros(features)) if affine else None

    def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Float[Array, "*b d"]:
        """`x`, normed."""
        return layers.layer_norm(x, parameter_value(self.weight), parameter_value(self.bias), self.eps, ctx)


def parameter_value(parameter: nnx.Param | None) -> Array | None:
    """The value of a parameter that may be absent, or that `jaxlin.nn.biases.without_biases` has emptied."""
    return None if parameter is None else parameter.get_value()
