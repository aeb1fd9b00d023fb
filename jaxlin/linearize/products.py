"""The compiled products of a `LocalMap` with batches of vectors, forward and backward."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.linearize.backward import transpose
from jaxlin.linearize.frozen import replay_between
from jaxlin.nn.biases import without_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.folding import folding_pays
from jaxlin.nn.sharding import mesh_of, row_parts


def fold_rows(lmap: Any, rows: int) -> bool:
    """Whether folding MLPs saves operations for `rows` vectors, which are divided among the devices."""
    d, f = lmap.model.config.hidden_size, lmap.model.config.neurons
    return folding_pays(rows // row_parts(mesh_of(lmap.model)), d, f)


@jax.jit
def matvec(lmap: Any, v: Float[Array, "b t d"]) -> Float[Array, "b d"]:
    """$J v$ for each `v`."""
    v = jnp.moveaxis(v[:, : lmap.frozen.tokens], 1, 0)
    return _apply(lmap, without_biases(lmap.model), v, jnp.zeros_like(v))


@functools.partial(jax.jit, static_argnames="fold")
def rmatvec(lmap: Any, u: Float[Array, "b d"], *, fold: bool) -> Float[Array, "b t d"]:
    r"""$J^\top u$ for each `u`."""
    length, (tokens, d) = lmap.frozen.tokens, lmap.x.shape
    v = jax.ShapeDtypeStruct((length, u.shape[0], d), lmap.x.dtype)
    rows, _ = transpose(functools.partial(_apply, lmap, fold=fold), lmap.model, v, v)(u)
    return jnp.pad(jnp.moveaxis(rows, 0, 1), ((0, 0), (0, tokens - length), (0, 0)))


def _apply(
    lmap: Any, bare: Decoder, v: Float[Array, "t b d"], stream: Float[Array, "t b d"], *, fold: bool = False
) -> Float[Array, "b d"]:
    """The map, linear in the value `v` at its source and in the residual `stream` that enters the source's block.

    The batch comes after the positions, so that the vectors of each position are one contiguous matrix.
    """
    queries, position = (1, 0) if lmap.is_last_position else (0, lmap.position)
    y = replay_between(
        bare, lmap.frozen, stream, lmap.source, lmap.target, {lmap.source: v}, queries=queries, fold=fold
    )
    return jax.lax.dynamic_index_in_dim(y, position, keepdims=False)
