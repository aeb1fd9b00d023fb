"""Directions to tokens: an output direction through the unembedding, an input direction to the nearest embeddings."""

import functools
import weakref
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxlin.common.arrays import equal_by_identity
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.nn.biases import without_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST, broadcast_last

BATCH = 64
"""Directions decoded together: of each there are as many scores as tokens."""


@equal_by_identity
class Nearest(NamedTuple):
    """The best tokens for each direction.

    Attributes:
        ids: token ids, the best first.
        scores: logits, or cosines.
    """

    ids: Shaped[Array | np.ndarray, "*b k"]
    scores: Shaped[Array | np.ndarray, "*b k"]


@equal_by_identity
class Poles(NamedTuple):
    """Both ends of each direction: a singular vector has no sign of its own.

    Attributes:
        positive: the tokens along it.
        negative: the tokens against it, with their scores along the opposite direction.
    """

    positive: Nearest
    negative: Nearest


@equal_by_identity
class TripletWords(NamedTuple):
    r"""Singular triplets in words; $u \cdot f \ge 0$ fixes the sign of $u$, and of $v$ with it.

    Attributes:
        left: the output tokens of each left vector, ``[k, n]``: the logits of $u$.
        right: the input tokens of each right vector at each position, ``[k, t, n]``: cosines.
        share: of the squared norm of each right vector, at each position, ``[k, t]``.
    """

    left: Poles
    right: Poles
    share: Float[np.ndarray, "k t"]


@equal_by_identity
class Features(NamedTuple):
    """The largest columns or rows of the map of each token.

    Attributes:
        features: which of the input's or output's features, the largest first, ``[t, m]``.
        norms: their norms.
        words: the tokens of each, ``[t, m, n]``.
    """

    features: Int[np.ndarray, "t m"]
    norms: Float[np.ndarray, "t m"]
    words: Poles


@jax.jit(static_argnames="k")
def promoted_tokens(model: Decoder, u: Float[Array, "*b d"], k: int = 8) -> Nearest:
    r"""The `k` tokens that an output direction `u` promotes most: the largest of $W_U u$.

    The other pole is that of ``-u``. A bias of the unembedding belongs to no direction and is left out.
    """
    scores, ids = jax.lax.top_k(without_biases(model).unembed(u), k)
    return Nearest(ids, scores)


def nearest_embeddings(model: Decoder, v: Float[Array, "*b d"], k: int = 8) -> Nearest:
    r"""The `k` tokens whose input embeddings have the largest cosine with `v`.

    Rows of zero (control tokens of some vocabularies) have no direction and are never chosen.
    """
    return _nearest(model, _inverse_norms(model), v, k)


def triplet_words(
    model: Decoder, svd: SVD, output: Shaped[Array | np.ndarray, " d"] | None = None, k: int = 8
) -> TripletWords:
    r"""Both poles of every left and right vector, in batches.

    Args:
        model: the decoder.
        svd: of a map from the embeddings to the final norm. Of a map between other sites a left vector is read by the
            unembedding as it is, without the final norm, and a right one among the input embeddings: a lens, which says
            something as far as the streams there are alike.
        output: $f$, which fixes the signs; they are taken as they are unless given. `LocalMap.svd` has fixed them.
        k: tokens of each pole.

    Raises:
        JaxlinError: `k` is not in 1..vocabulary, or vectors of another width than the model's.
    """
    signed = svd if output is None else svd.signed(np.asarray(output))
    share = np.sum(np.square(signed.v), axis=-1)
    return TripletWords(left_words(model, signed.u.T, k), right_words(model, signed.v, k), share)


def left_words(model: Decoder, u: Shaped[Array | np.ndarray, "*b d"], k: int = 8) -> Poles:
    """Both poles of output directions: the logits of `u` and of ``-u``, in batches.

    Raises:
        JaxlinError: `k` is not in 1..vocabulary, or vectors of another width than the model's.
    """
    return _poles(functools.partial(promoted_tokens, model, k=k), u, model, k)


def right_words(model: Decoder, v: Shaped[Array | np.ndarray, "*b d"], k: int = 8) -> Poles:
    """Both poles of input directions: the embeddings nearest to `v` and to ``-v``, in batches.

    Raises:
        JaxlinError: `k` is not in 1..vocabulary, or vectors of another width than the model's.
    """
    return _poles(functools.partial(nearest_embeddings, model, k=k), v, model, k)


def largest_columns(model: Decoder, jacobian: Shaped[np.ndarray, "d t e"], count: int = 8, k: int = 8) -> Features:
    """The columns of each token's map with the largest norms, as output directions.

    A column is what the output receives of one feature of the token's embedding.
    """
    norms = np.linalg.norm(jacobian, axis=0)
    index = np.argsort(-norms, axis=-1, kind="stable")[:, :count]
    columns = np.take_along_axis(np.moveaxis(jacobian, 0, -1), index[:, :, None], axis=1)
    return Features(index, np.take_along_axis(norms, index, axis=-1), left_words(model, columns, k))


def largest_rows(model: Decoder, jacobian: Shaped[np.ndarray, "d t e"], count: int = 8, k: int = 8) -> Features:
    """The rows of each token's map with the largest norms, as input directions.

    A row is what one feature of the output reads of the token's embedding.
    """
    norms = np.linalg.norm(jacobian, axis=-1).T
    index = np.argsort(-norms, axis=-1, kind="stable")[:, :count]
    rows = np.take_along_axis(np.moveaxis(jacobian, 0, 1), index[:, :, None], axis=1)
    return Features(index, np.take_along_axis(norms, index, axis=-1), right_words(model, rows, k))


def _poles(decode: Any, directions: Any, model: Decoder, k: int) -> Poles:
    vocab = model.config.vocab_size
    if not 1 <= k <= vocab:
        raise JaxlinError(f"Words: expected a number of tokens in 1..{vocab}; found {k}.")
    directions, width = np.asarray(directions, model.dtype), model.config.hidden_size
    if directions.shape[-1:] != (width,):
        raise JaxlinError(
            f"Words: expected directions of shape (..., {width}); found {directions.shape}. "
            "Of a spectrum, the left vectors are the columns of u: give u.T."
        )
    flat = directions.reshape(-1, directions.shape[-1])
    both = np.concatenate([flat, -flat])
    ids, scores = np.zeros((len(both), k), np.int32), np.zeros((len(both), k), directions.dtype)
    for start in range(0, len(both), BATCH):
        part = both[start : start + BATCH]
        # One shape for all batches, which are compiled for it.
        found = decode(jnp.asarray(np.concatenate([part, np.zeros((BATCH - len(part), flat.shape[1]), part.dtype)])))
        ids[start : start + BATCH], scores[start : start + BATCH] = (np.asarray(a)[: len(part)] for a in found)
    shape = (2, *directions.shape[:-1], k)
    return Poles(*(Nearest(*pair) for pair in zip(ids.reshape(shape), scores.reshape(shape), strict=True)))


_NORMS: weakref.WeakKeyDictionary[Any, Array] = weakref.WeakKeyDictionary()


def _inverse_norms(model: Decoder) -> Float[Array, " vocab"]:
    """One over the norm of each embedding, 0 for zero, computed once a model.

    With them cosines are dot products with the embedding matrix itself: a normalised copy would be as large as it.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(model)):
        return _compute_inverse_norms(model)
    if model not in _NORMS:
        _NORMS[model] = _compute_inverse_norms(model)
    return _NORMS[model]


@jax.jit
def _compute_inverse_norms(model: Decoder) -> Float[Array, " vocab"]:
    norms = jnp.linalg.norm(model.embed_tokens.weight[...].astype(model.dtype), axis=-1)
    return jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)


@jax.jit(static_argnames="k")
def _nearest(model: Decoder, inverse: Float[Array, " vocab"], v: Float[Array, "*b d"], k: int) -> Nearest:
    table = model.embed_tokens.weight[...].astype(v.dtype)
    dots = jnp.einsum("...d,vd->...v", v, table, precision=HIGHEST)
    length = jnp.linalg.norm(v, axis=-1, keepdims=True)
    along = broadcast_last(inverse.astype(v.dtype), dots)
    cosines = jnp.where(along > 0, dots * along / jnp.where(length > 0, length, 1), -jnp.inf)
    scores, ids = jax.lax.top_k(cosines, k)
    return Nearest(ids, scores)
