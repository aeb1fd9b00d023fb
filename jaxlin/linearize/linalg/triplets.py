r"""Singular triplets of a local linear map, and the ranks that follow from its singular values.

The joint map is the matrix ``[d, t * d]`` that multiplies the embeddings of all tokens at once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Shaped

from jaxlin import plots
from jaxlin.common.annotations import is_integer
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.sharding import to_numpy
from jaxlin.results import Result


@dataclass(frozen=True, repr=False, eq=False)
class SVD(Result):
    r"""The largest singular triplets, $J \approx \sum_i \sigma_i u_i v_i^\top$; it unpacks as ``u, s, v``.

    Attributes:
        u: left vectors, ``[d, k]``: directions of the output.
        s: singular values, ``[k]``, the largest first.
        v: right vectors, ``[k, t, d]``: directions of the input, over all tokens together.
        residual: $\sqrt{(\lVert J v - \sigma u \rVert^2 + \lVert J^\top u - \sigma v \rVert^2) / 2}$ of each, ``[k]``.
            Divided by the distance to the next value, it bounds the error of the vectors. None if it was not measured.
        bound: how far each value may be from that of the exact $J$, rounding included, ``[k]``; None if it was not
            measured.
        method: ``"dense"`` or ``"krylov"``.
    """

    AXES: ClassVar = {
        **dict.fromkeys(("s", "residual", "bound"), ("triplet",)),
        "u": ("feature", "triplet"),
        "v": ("triplet", "position", "feature"),
    }

    u: Float[np.ndarray, "d k"]
    s: Float[np.ndarray, " k"]
    v: Float[np.ndarray, "k t e"]
    residual: Float[np.ndarray, " k"] | None = None
    bound: Float[np.ndarray, " k"] | None = None
    method: str = "dense"

    def __iter__(self) -> Iterator[Any]:
        yield from (self.u, self.s, self.v)

    def signed(self, output: Float[np.ndarray, " d"]) -> "SVD":
        r"""The same triplets with $u \cdot f \ge 0$: the signs of a pair of singular vectors are arbitrary."""
        sign = np.where(output @ self.u < 0, -1, 1).astype(self.u.dtype)
        return self.replaced(u=self.u * sign[None], v=self.v * sign[:, None, None])

    @property
    def share(self) -> Float[np.ndarray, "k t"]:
        """The share of each position in the squared norm of each right vector."""
        return np.sum(np.square(self.v), axis=-1)

    def _draw(self, ax: Any) -> None:
        """The singular values on a logarithmic scale."""
        plots.curves(ax, np.arange(1, len(self.s) + 1), {"σ": self.s}, log=True)
        plots.write(ax, title="Singular values", xlabel="triplet", ylabel="σ")


def svd(jacobian: Shaped[np.ndarray, "d t e"], k: int | None = None) -> SVD:
    """The `k` largest singular triplets of a dense map; all of them if `k` is None.

    Raises:
        JaxlinError: `k` is not in 1..rank, or the map is in 16 bits.
    """
    check_dtype(jacobian.dtype)
    k = check_count(k, jacobian.shape)
    u, s, vt = np.linalg.svd(jacobian.reshape(jacobian.shape[0], -1), full_matrices=False)
    return SVD(u[:, :k], s[:k], vt[:k].reshape(k, *jacobian.shape[1:]))


def bounded_svd(jacobian: Shaped[np.ndarray, "d t e"], matvec: Callable[[Any], Any], k: int) -> SVD:
    r"""`svd` with bounds: `matvec` computes $J v$ by another program than the one that computed the rows.

    Raises:
        JaxlinError: `k` is larger than the rank of the map.
    """
    u, s, v = svd(jacobian)
    eps = float(np.finfo(jacobian.dtype).eps)
    rank = int(np.sum(s > eps * max(len(u), v[0].size) * s[0]))
    if k > rank:
        raise JaxlinError(f"SVD: expected k in 1..{rank}, the rank of this map; found {k}.")
    u, s, v = u[:, :k], s[:k], v[:k]
    right = to_numpy(matvec(v)) - s[:, None] * u.T
    left = u.T @ jacobian.reshape(len(jacobian), -1) - s[:, None] * v.reshape(k, -1)
    squares = np.sum(np.square(right), axis=-1) + np.sum(np.square(left), axis=-1)
    residual = np.sqrt(squares / 2)
    return SVD(u, s, v, residual, residual + 8 * eps * s[0])


def check_dtype(dtype: Any) -> None:
    """Refuse 16 bits, whose rounding would hide the smaller singular values.

    Raises:
        JaxlinError: the dtype is neither float32 nor float64.
    """
    if dtype not in (np.float32, np.float64):
        raise JaxlinError(
            f"SVD: expected a map computed in float32 or float64; found {np.dtype(dtype).name}. "
            'Load the model with dtype="float32": its weights stay as they are stored.'
        )


def check_count(k: int | None, shape: tuple[int, ...]) -> int:
    """`k`, or the largest possible rank of a map ``[d, t, e]`` if `k` is None.

    Raises:
        JaxlinError: `k` is not an integer in 1..rank.
    """
    rank = min(shape[0], math.prod(shape[1:]))
    count = rank if k is None else k
    if not is_integer(count) or not 1 <= count <= rank:
        raise JaxlinError(f"SVD: expected k in 1..{rank}, the largest rank this map can have; found {quoted(k)}.")
    return count


@checked
def stable_rank(s: Float[np.ndarray, " k"]) -> float:
    r"""$\sum_i \sigma_i^2 / \sigma_1^2$: how many directions of the first one's strength would have the same energy."""
    return float(np.sum(np.square(s)) / np.square(s[0]))


@checked
def effective_rank(s: Float[np.ndarray, " k"]) -> float:
    r"""$\exp(-\sum_i p_i \ln p_i)$ with $p_i = \sigma_i / \sum_j \sigma_j$.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", 2007.
    """
    p = s[s > 0] / np.sum(s)
    return float(np.exp(-np.sum(p * np.log(p))))
