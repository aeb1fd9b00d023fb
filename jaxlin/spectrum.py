r"""The spectrum of a local linear map: singular values, vectors and what they say of its rank.

The joint map is the matrix ``[d, t * d]`` that takes the embeddings of all tokens at once.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxlin.errors import JaxlinError


class SVD(NamedTuple):
    r"""The largest singular triplets, $J \approx \sum_i \sigma_i u_i v_i^\top$.

    Attributes:
        u: left vectors, ``[d, k]``: directions of the output.
        s: singular values, ``[k]``, the largest first.
        v: right vectors, ``[k, t, d]``: directions of the input, over all tokens together.
    """

    u: Float[np.ndarray, "d k"]
    s: Float[np.ndarray, " k"]
    v: Float[np.ndarray, "k t d"]


def svd(jacobian: Shaped[np.ndarray, "d t e"], k: int | None = None) -> SVD:
    """The `k` largest singular triplets of a dense map, all of them unless given.

    Raises:
        JaxlinError: `k` is not in 1..rank.
    """
    rank = min(jacobian.shape[0], jacobian.shape[1] * jacobian.shape[2])
    kept = rank if k is None else k
    if not 1 <= kept <= rank:
        raise JaxlinError(f"SVD: expected k in 1..{rank}, the largest rank this map can have; found {k}.")
    u, s, vt = np.linalg.svd(jacobian.reshape(jacobian.shape[0], -1), full_matrices=False)
    return SVD(u[:, :kept], s[:kept], vt[:kept].reshape(kept, *jacobian.shape[1:]))


def stable_rank(s: Float[np.ndarray, " k"]) -> float:
    r"""$\sum_i \sigma_i^2 / \sigma_1^2$: how many directions as strong as the first the map is worth."""
    return float(np.sum(np.square(s)) / np.square(s[0]))


def effective_rank(s: Float[np.ndarray, " k"]) -> float:
    r"""$\exp(-\sum_i p_i \ln p_i)$ with $p_i = \sigma_i / \sum_j \sigma_j$.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", 2007.
    """
    p = s[s > 0] / np.sum(s)
    return float(np.exp(-np.sum(p * np.log(p))))
