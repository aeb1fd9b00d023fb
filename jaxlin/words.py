"""Directions to tokens: an output direction through the unembedding, an input direction to the nearest embeddings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.decoder import Decoder
from jaxlin.layers import HIGHEST


class Nearest(NamedTuple):
    """The best tokens for each direction.

    Attributes:
        ids: token ids, the best first.
        scores: logits, or cosines.
    """

    ids: Array
    scores: Array


@jax.jit(static_argnames="k")
def promoted(model: Decoder, u: Float[Array, "*b d"], k: int = 8) -> Nearest:
    r"""The `k` tokens that an output direction `u` promotes most: the largest of $W_U u$.

    The other pole is that of ``-u``.
    """
    scores, ids = jax.lax.top_k(model.unembed(u), k)
    return Nearest(ids, scores)


@jax.jit(static_argnames="k")
def nearest_embeddings(model: Decoder, v: Float[Array, "*b d"], k: int = 8) -> Nearest:
    r"""The `k` tokens whose input embeddings have the largest cosine with `v`.

    Rows of zero (control tokens of some vocabularies) have no direction and are never chosen.
    """
    table = model.embed_tokens.weight[...].astype(v.dtype)
    norms = jnp.linalg.norm(table, axis=-1)
    dots = jnp.einsum("...d,vd->...v", v, table, precision=HIGHEST)
    along = norms.reshape((1,) * (v.ndim - 1) + norms.shape)
    length = jnp.linalg.norm(v, axis=-1, keepdims=True)
    cosines = jnp.where(along > 0, dots / jnp.where(along > 0, along, 1) / jnp.where(length > 0, length, 1), -jnp.inf)
    scores, ids = jax.lax.top_k(cosines, k)
    return Nearest(ids, scores)
