"""Tokens of directions: the unembedding scores those of output directions, cosines with embeddings those of inputs."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.nn.biases import without_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST, broadcast_last
from jaxlin.results import note, traced_to
from jaxlin.spectrum.word_results import Features, Poles, TopTokens, TripletWords

DIRECTIONS_PER_BATCH = 64
"""The number of directions that are decoded together; each needs scores of the whole vocabulary."""


@checked
def promoted_tokens(model: Decoder, u: Shaped[Array | np.ndarray, "*b d"], k: int = 8) -> TopTokens:
    r"""The `k` tokens that an output direction `u` promotes most: those with the largest logits $W_U u$.

    Those of ``-u`` are the other pole. A bias of the unembedding is left out, as it is the same for all directions.
    """
    return traced_to(_promoted(model, jnp.asarray(u), k), model)


@jax.jit(static_argnames="k")
def _promoted(model: Decoder, u: Float[Array, "*b d"], k: int) -> TopTokens:
    scores, ids = jax.lax.top_k(without_biases(model).unembed(u), k)
    return TopTokens(ids, scores)


@checked
def nearest_embeddings(model: Decoder, v: Shaped[Array | np.ndarray, "*b d"], k: int = 8) -> TopTokens:
    r"""The `k` tokens whose input embeddings have the largest cosine with `v`.

    Embeddings of zero, which some vocabularies have for control tokens, have no direction and are left out.
    """
    return traced_to(_nearest(model, _inverse_norms(model), jnp.asarray(v), k), model)


@checked
def triplet_words(
    model: Decoder, svd: SVD, output: Shaped[Array | np.ndarray, " d"] | None = None, k: int = 8
) -> TripletWords:
    r"""The tokens at both poles of every left and right vector.

    Args:
        model: the decoder.
        svd: the singular triplets of a map from the embeddings to the final norm. For a map between other sites, left
            vectors still go straight through the unembedding, without the final norm, and right vectors are still
            compared with the input embeddings. As with a logit lens, the tokens then have a meaning only as far as the
            residual stream at the site resembles that at the ends of the model.
        output: $f$, which fixes the signs; by default they stay as they are. `LocalMap.svd` has already fixed them.
        k: the number of tokens at each pole.

    The errors are those of `left_words`.
    """
    signed = svd if output is None else svd.signed(np.asarray(output))
    share = np.sum(np.square(signed.v), axis=-1)
    words = TripletWords(left_words(model, signed.u.T, k), right_words(model, signed.v, k), share)
    if svd.provenance is not None:
        note(words, svd.provenance)
    return words


@checked
def left_words(model: Decoder, u: Shaped[Array | np.ndarray, "*b d"], k: int = 8) -> Poles:
    """The tokens at both poles of output directions, by the logits of `u` and of ``-u``.

    Raises:
        JaxlinError: `k` is not in 1..vocabulary, or the directions do not have the model's width.
    """
    return _poles(model, promoted_tokens, u, k)


@checked
def right_words(model: Decoder, v: Shaped[Array | np.ndarray, "*b d"], k: int = 8) -> Poles:
    """The tokens at both poles of input directions: those whose embeddings are nearest to `v` and to ``-v``.

    The errors are those of `left_words`.
    """
    return _poles(model, nearest_embeddings, v, k)


@checked
def largest_columns(model: Decoder, jacobian: Shaped[np.ndarray, "d t e"], count: int = 8, k: int = 8) -> Features:
    """The columns of each token's map with the largest norms, and the tokens of these as output directions.

    A column is the direction that one feature of the token's embedding adds to the output.
    """
    return _largest_vectors(model, np.moveaxis(jacobian, 0, -1), count, k, left_words)


@checked
def largest_rows(model: Decoder, jacobian: Shaped[np.ndarray, "d t e"], count: int = 8, k: int = 8) -> Features:
    """The rows of each token's map with the largest norms, and the tokens of these as input directions.

    A row is the direction of the token's embedding that one feature of the output depends on.
    """
    return _largest_vectors(model, np.moveaxis(jacobian, 0, 1), count, k, right_words)


def _largest_vectors(
    model: Decoder, vectors: Shaped[np.ndarray, "t n d"], count: int, k: int, decode: Callable[..., Poles]
) -> Features:
    """For each token, the `count` vectors with the largest norms."""
    norms = np.linalg.norm(vectors, axis=-1)
    index = np.argsort(-norms, axis=-1, kind="stable")[:, :count]
    largest = np.take_along_axis(vectors, index[:, :, None], axis=1)
    features = Features(index, np.take_along_axis(norms, index, axis=-1), decode(model, largest, k))
    return traced_to(features, model)


def _poles(model: Decoder, decode: Callable[..., TopTokens], directions: Any, k: int) -> Poles:
    check_not_traced("Words", model, directions)
    vocab_size = model.config.vocab_size
    if not 1 <= k <= vocab_size:
        raise JaxlinError(f"Words: expected a number of tokens in 1..{vocab_size}; found {k}.")
    directions, width = np.asarray(directions, model.dtype), model.config.hidden_size
    if directions.shape[-1:] != (width,):
        raise JaxlinError(
            f"Words: expected directions of shape (..., {width}); found {directions.shape}. "
            "The left singular vectors are the columns of u: pass u.T."
        )
    flat = directions.reshape(-1, width)
    both = np.concatenate([flat, -flat])
    ids, scores = np.zeros((len(both), k), np.int32), np.zeros((len(both), k), directions.dtype)
    for start in range(0, len(both), DIRECTIONS_PER_BATCH):
        rows = slice(start, start + DIRECTIONS_PER_BATCH)
        batch = both[rows]
        # Padded, so that all batches have one shape and the program is compiled once.
        padded = np.concatenate([batch, np.zeros((DIRECTIONS_PER_BATCH - len(batch), width), batch.dtype)])
        ids[rows], scores[rows] = (np.asarray(array)[: len(batch)] for array in decode(model, jnp.asarray(padded), k))
    shape = (2, *directions.shape[:-1], k)
    poles = (TopTokens(*pole) for pole in zip(ids.reshape(shape), scores.reshape(shape), strict=True))
    return traced_to(Poles(*poles), model)


_INVERSE_NORMS: weakref.WeakKeyDictionary[Any, Array] = weakref.WeakKeyDictionary()


def _inverse_norms(model: Decoder) -> Float[Array, " vocab"]:
    """The inverse norm of each embedding, and 0 for an embedding of zero, computed once for each model.

    They turn dot products with the embedding matrix into cosines without a normalised copy of that large matrix.
    """
    # A tracer must not outlive its trace in the cache.
    if any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(model)):
        return _compute_inverse_norms(model)
    if model not in _INVERSE_NORMS:
        _INVERSE_NORMS[model] = _compute_inverse_norms(model)
    return _INVERSE_NORMS[model]


@jax.jit
def _compute_inverse_norms(model: Decoder) -> Float[Array, " vocab"]:
    norms = jnp.linalg.norm(model.embed_tokens.weight[...].astype(model.dtype), axis=-1)
    return jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)


@jax.jit(static_argnames="k")
def _nearest(model: Decoder, inverse_norms: Float[Array, " vocab"], v: Float[Array, "*b d"], k: int) -> TopTokens:
    embeddings = model.embed_tokens.weight[...].astype(v.dtype)
    dots = jnp.einsum("...d,vd->...v", v, embeddings, precision=HIGHEST)
    v_norm = jnp.linalg.norm(v, axis=-1, keepdims=True)
    scale = broadcast_last(inverse_norms.astype(v.dtype), dots)
    cosines = jnp.where(scale > 0, dots * scale / jnp.where(v_norm > 0, v_norm, 1), -jnp.inf)
    scores, ids = jax.lax.top_k(cosines, k)
    return TopTokens(ids, scores)
