r"""The largest singular triplets of an operator by block Golub-Kahan-Lanczos, each with an error bound.

From a random block of left vectors, $J^\top$ and $J$ in turn extend a basis $Q$ of right vectors and a basis $P$ of
left vectors, both fully orthogonalized. With $J^\top P = Q B^\top$, the triplets of the small $B$ give those of $J$.
Memory: the vectors of $Q$, each as large as the input, and at most as many as $J$ has rows.

This replaces scipy's `svds`, which multiplies one vector at a time, on the host, and gives no error bound. Here a block
of vectors is multiplied at once and stays on its device, and each value has a bound.

Sources: Golub and Kahan, 1965; Golub, Luk and Overton, "A block Lanczos method for computing the singular values and
corresponding singular vectors of a matrix", 1981; the bound with a gap is that of Kato and Temple, as in
PROPACK (Larsen, 1998).
"""

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlin.common.annotations import is_integer
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.linearize.linalg.bases import Basis, Rows, choose_basis, decompose, orthonormalize
from jaxlin.linearize.linalg.triplets import SVD, check_count
from jaxlin.nn.sharding import to_numpy

EFFICIENT_POSITIONS = 128
"""How many positions make the cost of a product proportional to them; with fewer, reading the weights costs more."""

MIN_KRYLOV_SIZE = 2**22
"""The number of entries below which the products of a map take less time than the orthogonalization between them."""

LAPACK_ROUNDING = 64 * 2.0**-52
"""A bound on the rounding of the SVD of the small matrix in float64, relative to its norm."""

CLUSTER_WIDTH = 1e-4
"""The relative distance below which values count as copies of one repeated value."""


def default_width(tokens: int) -> int:
    """How many left vectors a block has: as few as make a product efficient."""
    return min(max(2, -(-EFFICIENT_POSITIONS // tokens)), 8)


def krylov_svd(
    matvec: Callable[[Any], Any],
    rmatvec: Callable[[Any], Any],
    shape: tuple[int, int, int],
    dtype: Any,
    k: int,
    *,
    tol: float | None = None,
    seed: int = 0,
    width: int | None = None,
    like: Any = None,
) -> SVD:
    r"""The `k` largest singular triplets of an operator ``[d, t, e]``, each value with a relative error below `tol`.

    A block of width $w$ finds at most $w$ copies of a repeated value. If $w$ values of the result are within
    `CLUSTER_WIDTH` of each other, or within residuals that more products do not reduce, there may be more copies, and
    the iteration restarts with a wider block. The bounds do not exclude a larger value whose singular vector happens
    to be orthogonal to every random start.

    Args:
        matvec: $v \mapsto J v$, with a leading batch axis.
        rmatvec: $u \mapsto J^\top u$, with a leading batch axis.
        shape: ``(d, t, e)``.
        dtype: the dtype of the products.
        k: how many triplets.
        tol: iterate until every `SVD.bound` is below this, relative to its value, and every `SVD.residual` below ten
            times this, relative to the largest value; or both as low as products in `dtype` allow. The default is 1e-5
            in float32 and 1e-12 in float64.
        seed: the seed of the random start.
        width: how many left vectors a block has; the default is `default_width`.
        like: an array ``[t, e]``; the vectors of $Q$ are stored on its device if there is room, otherwise on the host.

    Raises:
        JaxlinError: `k` is not an integer in 1..rank of the operator, or `tol` or `seed` is out of range.
    """
    check_count(k, shape)
    check_options(tol, seed)
    if tol is None:
        tol = 1e-12 if np.dtype(dtype) == np.float64 else 1e-5
    width = min(k, width or default_width(shape[1]))
    right_basis = choose_basis(like, expected_products(k, shape[1]))
    while True:
        rng = np.random.default_rng(seed)
        triplets, complete = _iterate(matvec, rmatvec, shape, np.dtype(dtype), k, tol, rng, width, right_basis)
        if complete:
            return triplets
        width = min(2 * width, k)


def check_options(tol: Any, seed: Any) -> None:
    """Refuse a tolerance or a seed that `krylov_svd` cannot use.

    Raises:
        JaxlinError: the tolerance is not between 0 and 1, or the seed is not a nonnegative integer.
    """
    if tol is not None and not (isinstance(tol, Real) and not isinstance(tol, bool) and 0 < float(tol) < 1):
        raise JaxlinError(f"SVD: expected a tolerance between 0 and 1, of each value relative; found {quoted(tol)}.")
    if not is_integer(seed) or seed < 0:
        raise JaxlinError(f"SVD: expected a seed that is an integer of 0 or more; found {quoted(seed)}.")


def _iterate(
    matvec: Callable[[Any], Any],
    rmatvec: Callable[[Any], Any],
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    k: int,
    tol: float,
    rng: np.random.Generator,
    width: int,
    right_basis: type[Basis],
) -> tuple[SVD, bool]:
    """The triplets from one start, and whether no copy of a repeated value can be missing among them."""
    d, *input_shape = shape
    state = _Factorization(d, int(np.prod(input_shape)), dtype, right_basis)
    block, is_random = state.random(rng, width), True
    while True:
        pulled = state.q.flatten(rmatvec(state.p.pad(block, width)))[: len(block)]
        new = state.add_left(block, pulled)
        # If random left vectors bring no new right vector, Q spans the whole row space of J.
        exhausted = len(state.p) == d or (is_random and not len(new))
        pushed = to_numpy(matvec(state.q.pad(new, width).reshape(width, *input_shape)))[: len(new)]
        block, is_random = state.add_right(new, pushed)[: d - len(state.p)], False
        rank = len(state.q)
        if exhausted and rank < k:
            raise JaxlinError(f"SVD: expected k in 1..{rank}, the rank of this map; found {k}.")
        if rank >= k:
            s, r, bound, rounding = state.bounds(k)
            values_converged = np.all(bound <= np.maximum(tol * s, 2 * rounding))
            if exhausted or (values_converged and np.all(r <= max(10 * tol * s[0], 2 * rounding))):
                complete = exhausted or width >= k or not _has_cluster(s, r, width)
                # While residuals can still shrink, more products may separate the values without a restart.
                if complete or _has_cluster(s, np.zeros_like(r), width) or np.all(r <= 2 * rounding):
                    return state.triplets(k, input_shape, r, bound), complete
        if not len(block):
            block, is_random = state.random(rng, width), True


class _Factorization:
    r"""$P$, $Q$ and $B$ with $J^\top P = Q B^\top$, and the products $J Q$; vectors are rows."""

    def __init__(self, left: int, right: int, dtype: np.dtype[Any], right_basis: type[Basis]) -> None:
        self.p, self.q, self.b = Basis(left, dtype), right_basis(right, dtype), np.zeros((0, 0))
        self.jq = np.zeros((0, left), dtype)
        self.eps = float(np.finfo(dtype).eps)

    @property
    def scale(self) -> float:
        """The norm of $B$, which approaches that of $J$ from below."""
        return float(np.linalg.norm(self.b, 2)) if self.b.size else 0.0

    def random(self, rng: np.random.Generator, count: int) -> Float[Rows, "b d"]:
        """At most `count` random left vectors orthogonal to $P$."""
        d = self.p.features
        return orthonormalize(rng.standard_normal((min(count, d - len(self.p)), d)).astype(self.p.dtype), self.p)

    def add_left(self, block: Float[Rows, "b d"], pulled: Float[Rows, "b e"]) -> Float[Rows, "c e"]:
        r"""Add `block` to $P$; return the right vectors that its products `pulled` with $J^\top$ contribute to $Q$."""
        min_length = 8 * self.eps * max(self.scale, self.q.norm(pulled))
        coefficients, new, new_coefficients = decompose(pulled, self.q, min_length)
        (m, n), c = self.b.shape, len(new)
        b = np.zeros((m + len(block), n + c))
        b[:m, :n], b[m:, :n], b[m:, n:] = self.b, coefficients, new_coefficients
        self.b = b
        self.p.add(block)
        return new

    def add_right(self, new: Float[Rows, "c e"], pushed: Float[np.ndarray, "c d"]) -> Float[Rows, "b d"]:
        """Add `new` to $Q$; return the left vectors that its products `pushed` with $J$ contribute to $P$."""
        self.q.add(new)
        self.jq = np.concatenate([self.jq, pushed])
        return decompose(pushed, self.p, 8 * self.eps * self.scale)[1]

    def bounds(self, k: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"], float]:
        r"""The `k` largest values, their residuals, a bound on the error of each, and the part of it that is rounding.

        $J^\top u = \sigma v$ by construction, so $r = \lVert J v - \sigma u \rVert / \sqrt 2$ is the residual of
        $(u, v) / \sqrt 2$ as an eigenvector of $[0, J; J^\top, 0]$; the error is at most $r$, and at most $r^2$ over
        the distance to the other eigenvalues. Both $J Q$ and $J^\top P$ give the entries of $B$: their difference
        measures the rounding of the products. The vectors have length 1 to a few units in the last place.
        """
        y, s, zt = np.linalg.svd(self.b, full_matrices=False)
        r = np.linalg.norm(zt @ self.jq - s[:, None] * self.p.combine(y.T), axis=-1) / np.sqrt(2)
        distances = np.abs(s[:, None] - s[None, :]) - r[None, :]
        np.fill_diagonal(distances, np.inf)
        gap = np.minimum(distances.min(axis=-1), s)
        squared = np.where(gap > 0, r**2 / np.where(gap > 0, gap, 1), np.inf)
        difference = np.linalg.norm(self.p.coefficients(self.jq).T - self.b, 2)
        rounding = float(difference + (4 * self.eps + LAPACK_ROUNDING) * s[0])
        return s[:k], r[:k], (np.minimum(r, squared) + rounding)[:k], rounding

    def triplets(
        self, k: int, input_shape: list[int], r: Float[np.ndarray, " k"], bound: Float[np.ndarray, " k"]
    ) -> SVD:
        """The `k` largest triplets, with these residuals and bounds."""
        y, s, zt = np.linalg.svd(self.b, full_matrices=False)
        dtype = self.p.dtype
        u = self.p.combine(y[:, :k].T.astype(dtype)).T
        v = self.q.combine(zt[:k].astype(dtype)).reshape(k, *input_shape)
        return SVD(u, s[:k].astype(dtype), v, r, bound, "krylov")


def _has_cluster(s: Float[np.ndarray, " k"], r: Float[np.ndarray, " k"], width: int) -> bool:
    """Whether `width` of the values `s`, with residuals `r`, may be copies of one repeated value."""
    runs = len(s) - width + 1
    residual = np.max([r[i : i + runs] for i in range(width)], axis=0)
    return bool(np.any(s[:runs] - s[width - 1 :] <= 8 * residual + CLUSTER_WIDTH * s[:runs]))


def expected_products(k: int, tokens: int) -> int:
    """About how many products with the map, and as many with its transpose, `k` triplets take."""
    return 5 * k + 12 * default_width(tokens)


def cheaper(shape: tuple[int, int, int], k: int) -> str:
    r"""``"krylov"`` or ``"dense"``: the method expected to be faster for `k` triplets of a map ``[d, t, e]``.

    The dense map takes $d$ products, all computed together, which halves their time. Krylov takes `expected_products`,
    a block of width $w$ at a time; a block of fewer than `EFFICIENT_POSITIONS` positions takes as long as one of so
    many. For maps of fewer than `MIN_KRYLOV_SIZE` entries ``"dense"`` is faster.
    """
    d, tokens, e = shape
    if d * tokens * e < MIN_KRYLOV_SIZE:
        return "dense"
    width = default_width(tokens)
    products = expected_products(k, tokens) * max(1.0, EFFICIENT_POSITIONS / (width * tokens))
    return "krylov" if 2 * products < d else "dense"
