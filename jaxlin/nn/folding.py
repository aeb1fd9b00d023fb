r"""Folding: the matrices of an MLP multiplied together before they meet the vectors, where many vectors pass.

Where as many vectors pass as the stream has features, as when all rows of a Jacobian are taken, one $d \times d$ matrix
at each position costs less than two products with hidden features: $d^2 f + r d^2$ multiplications for $r$ vectors
instead of $2 r d f$.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxlin.nn.layers import product

M = TypeVar("M")

Branches = Sequence[tuple[Float[Array, "s f"], Float[Array, "f d"]]]
"""The factors of hidden neurons, each with the weight whose product with the stream it multiplies."""


def folding_pays(rows: int, d: int, f: int) -> bool:
    r"""Whether `fold` takes fewer operations for `rows` vectors: $d^2 f + r d^2 < 2 r d f$."""
    return d * f + rows * d < 2 * rows * f


def fold(
    x: Float[Array, "t *b d"],
    down: Float[Array, "d f"],
    branches: Branches,
) -> Float[Array, "t *b d"]:
    r"""$x_t \mapsto \big(D \sum_i \mathrm{diag}(a_{ti})\, W_i\big) x_t$ for the factors and weights $(a_i, W_i)$."""
    weights = [w.astype(x.dtype) for _, w in branches]
    down = down.astype(x.dtype)
    return fold_tokens(
        x, [a for a, _ in branches], lambda token: folded_matrix(down, list(zip(token, weights, strict=True)))
    )


def fold_tokens(
    x: Float[Array, "t *b d"], factors: Any, matrix: Callable[[Any], Float[Array, "d e"]]
) -> Float[Array, "t *b d"]:
    """`x` times a matrix of each token, which `matrix` computes from the row of `factors` of the token."""
    rows = jax.tree.map(lambda a: a[-x.shape[0] :], factors)

    # Without the checkpoint the matrices of all positions would be stored for the transpose.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def apply_to_token(token: tuple[Any, Array]) -> Array:
        row, x = token
        return product("de,...e->...d", matrix(row), x)

    # One position after another: side by side, XLA would decode packed weights again for each of them.
    return jax.lax.map(apply_to_token, (rows, x))


def folded_matrix(
    down: Float[Array, "d f"], branches: Sequence[tuple[Float[Array, " f"], Float[Array, "f e"]]]
) -> Float[Array, "d e"]:
    r"""$D \sum_i \mathrm{diag}(a_i)\, W_i$ for the factors and weights $(a_i, W_i)$."""
    if len(branches) == 1:
        ((a, weight),) = branches
        return product("df,fe->de", down * a[None, :], weight)
    inner = jnp.sum(jnp.stack([a[:, None] * w for a, w in branches]), axis=0)
    return product("df,fe->de", down, inner)


def elementwise_derivatives(f: Callable[..., Array], *arguments: Float[Array, "t f"]) -> tuple[Array, ...]:
    """The derivatives of `f`, which takes each feature by itself, with respect to each of its arguments."""
    value, pull = jax.vjp(f, *arguments)
    return tuple(pull(jnp.ones_like(value)))


def with_derivative(
    part: M, x: Float[Array, "t d"], value: Callable[[M, Array], Array], derivative: Callable[[M, Array, Array], Array]
) -> Float[Array, "t d"]:
    """``value(part, x)``, whose derivative along `v` is ``derivative(part, x, v)``.

    The parameters of `part`, a part of the model, are constants.
    """
    call = jax.custom_jvp(value)

    def jvp(primals: tuple[M, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
        y, v = value(*primals), tangents[1]
        return y, jnp.zeros_like(y) if isinstance(v, SymbolicZero) else derivative(*primals, v)

    # With symbolic zeros, because the tangents of the parameters would be zeros as large as the weights.
    call.defjvp(jvp, symbolic_zeros=True)
    return call(part, x)
