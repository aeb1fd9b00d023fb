r"""The largest singular triplets of an operator by block Golub-Kahan-Lanczos, with a bound on each.

From a random block of left vectors the basis $P$ grows by $J$ and $J^\top$ in turn, and a basis $Q$ of right vectors
with it; both are orthogonalised in full. With $J^\top P = Q B^\top$ the triplets of the small $B$ give those of $J$.
Memory: the vectors of $Q$, as large as the input each, and at most as many as $J$ has rows.

Sources: Golub and Kahan, 1965; Golub, Luk and Overton, "A block Lanczos method for computing the singular values and
corresponding singular vectors of a matrix", 1981; the bound with a gap is Kato and Temple's, used so in PROPACK
(Larsen, 1998).
"""

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.linearize.linalg.bases import Basis, Rows, basis_beside, orthonormal, split
from jaxlin.linearize.linalg.triplets import SVD, check_count
from jaxlin.nn.sharding import to_numpy
from jaxlin.nn.sites import is_integer

FULL = 128
"""Positions in one product from which its cost is in proportion to them: below, reading the weights costs more."""

SMALL = 2**22
"""Entries of a map whose products take less time than what is done between them."""

LAPACK = 64 * 2.0**-52
"""What the SVD of the small matrix, in float64, may round, relative to its norm."""

CROWDED = 1e-4
"""Values that are as near to each other, relatively, count as one that is repeated."""


def default_width(tokens: int) -> int:
    """Left vectors in a block: as few as fill a product."""
    return min(max(2, -(-FULL // tokens)), 8)


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
    beside: Any = None,
) -> SVD:
    r"""The `k` largest singular triplets of an operator ``[d, t, e]``, each value to `tol` of itself.

    A block of width $w$ finds at most $w$ copies of a repeated value. Where $w$ values of the answer are as near to
    each other as `CROWDED`, or as residuals that more products do not make smaller, there may be more copies, and it
    begins anew with a wider block. What the bounds do not exclude is a larger value to whose vector every random one
    happened to be orthogonal.

    Args:
        matvec: $v \mapsto J v$, with a leading batch axis.
        rmatvec: $u \mapsto J^\top u$, with a leading batch axis.
        shape: ``(d, t, e)``.
        dtype: of the products.
        k: how many triplets.
        tol: iterate until every `SVD.bound` is below this, relative to its value, and every `SVD.residual` below ten
            times this, relative to the largest value; or both as low as products in `dtype` allow. 1e-5 in float32 and
            1e-12 in float64 unless given.
        seed: of the random start.
        width: left vectors in a block; `default_width` unless given.
        beside: an array ``[t, e]`` on the device that may keep the vectors of $Q$; they are on the host unless given.

    Raises:
        JaxlinError: `k` is no integer in 1..rank of the operator, or `tol` is not between 0 and 1.
    """
    check_count(k, shape)
    check_options(tol, seed)
    if tol is None:
        tol = 1e-12 if np.dtype(dtype) == np.float64 else 1e-5
    width = min(k, width or default_width(shape[1]))
    kept = basis_beside(beside, expected_products(k, shape[1]))
    while True:
        rng = np.random.default_rng(seed)
        found, complete = _run(matvec, rmatvec, shape, np.dtype(dtype), k, tol, rng, width, kept)
        if complete:
            return found
        width = min(2 * width, k)


def check_options(tol: Any, seed: Any) -> None:
    """Refuse a tolerance that bounds nothing, and a seed of no random numbers.

    Raises:
        JaxlinError: a tolerance that is not between 0 and 1, or a seed that is no integer of 0 or more.
    """
    if tol is not None and not (isinstance(tol, Real) and not isinstance(tol, bool) and 0 < float(tol) < 1):
        raise JaxlinError(f"SVD: expected a tolerance between 0 and 1, of each value relative; found {quoted(tol)}.")
    if not is_integer(seed) or seed < 0:
        raise JaxlinError(f"SVD: expected a seed that is an integer of 0 or more; found {quoted(seed)}.")


def _run(
    matvec: Callable[[Any], Any],
    rmatvec: Callable[[Any], Any],
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    k: int,
    tol: float,
    rng: np.random.Generator,
    width: int,
    kept: type[Basis],
) -> tuple[SVD, bool]:
    """The triplets from one start, and whether none can be missing beside them."""
    d, right = shape[0], shape[1:]
    bases = _Bases(d, int(np.prod(right)), dtype, kept)
    block, drawn = bases.random(rng, width), True
    while True:
        pulled = bases.q.held(rmatvec(bases.p.padded(block, width)))[: len(block)]
        fresh = bases.add_left(block, pulled)
        # What random vectors do not reach is not there.
        exhausted = len(bases.p) == d or (drawn and not len(fresh))
        pushed = to_numpy(matvec(bases.q.padded(fresh, width).reshape(width, *right)))[: len(fresh)]
        block, drawn = bases.add_right(fresh, pushed)[: d - len(bases.p)], False
        rank = len(bases.q)
        if exhausted and rank < k:
            raise JaxlinError(f"SVD: expected k in 1..{rank}, the rank of this map; found {k}.")
        if rank >= k:
            s, r, bound, rounding = bases.bounds(k)
            values = np.all(bound <= np.maximum(tol * s, 2 * rounding))
            if exhausted or (values and np.all(r <= max(10 * tol * s[0], 2 * rounding))):
                complete = exhausted or width >= k or not _crowded(s, r, width)
                # Values that further products may yet tell apart are no reason to begin anew.
                if complete or _crowded(s, np.zeros_like(r), width) or np.all(r <= 2 * rounding):
                    return bases.triplets(k, right, r, bound), complete
        if not len(block):
            block, drawn = bases.random(rng, width), True


class _Bases:
    r"""$P$, $Q$ and $B$ with $J^\top P = Q B^\top$, and the products $J Q$; vectors are rows."""

    def __init__(self, left: int, right: int, dtype: np.dtype[Any], kept: type[Basis]) -> None:
        self.p, self.q, self.b = Basis(left, dtype), kept(right, dtype), np.zeros((0, 0))
        self.jq = np.zeros((0, left), dtype)
        self.eps = float(np.finfo(dtype).eps)

    @property
    def scale(self) -> float:
        """The norm of $J$ as far as it is known."""
        return float(np.linalg.norm(self.b, 2)) if self.b.size else 0.0

    def random(self, rng: np.random.Generator, count: int) -> Float[Rows, "b d"]:
        """At most `count` random left vectors orthogonal to $P$."""
        d = self.p.features
        return orthonormal(rng.standard_normal((min(count, d - len(self.p)), d)).astype(self.p.dtype), self.p)

    def add_left(self, block: Float[Rows, "b d"], pulled: Float[Rows, "b e"]) -> Float[Rows, "c e"]:
        """Take `block` into $P$ with its products; return the right vectors that they bring."""
        along, fresh, lengths = split(pulled, self.q, 8 * self.eps * max(self.scale, self.q.norm(pulled)))
        (m, n), c = self.b.shape, len(fresh)
        b = np.zeros((m + len(block), n + c))
        b[:m, :n], b[m:, :n], b[m:, n:] = self.b, along, lengths
        self.b = b
        self.p.add(block)
        return fresh

    def add_right(self, fresh: Float[Rows, "c e"], pushed: Float[np.ndarray, "c d"]) -> Float[Rows, "b d"]:
        """Take `fresh` into $Q$ with its products; return the left vectors that they bring."""
        self.q.add(fresh)
        self.jq = np.concatenate([self.jq, pushed])
        return split(pushed, self.p, 8 * self.eps * self.scale)[1]

    def bounds(self, k: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"], float]:
        r"""The `k` largest values, their residuals, how far each is from exact, and how much of that is rounding.

        $J^\top u = \sigma v$ by construction, so $r = \lVert J v - \sigma u \rVert / \sqrt 2$ is the residual of
        $(u, v) / \sqrt 2$ as an eigenvector of $[0, J; J^\top, 0]$; the error is at most $r$, and at most $r^2$ over
        the distance to the other eigenvalues. $J Q$ against the same entries of $B$ from $J^\top P$ shows what the
        products round; the vectors' own lengths are right to a few units in the last place.
        """
        y, s, zt = np.linalg.svd(self.b, full_matrices=False)
        r = np.linalg.norm(zt @ self.jq - s[:, None] * self.p.sums(y.T), axis=-1) / np.sqrt(2)
        apart = np.abs(s[:, None] - s[None, :]) - r[None, :]
        np.fill_diagonal(apart, np.inf)
        gap = np.minimum(apart.min(axis=-1), s)
        squared = np.where(gap > 0, r**2 / np.where(gap > 0, gap, 1), np.inf)
        rounding = float(np.linalg.norm(self.p.along(self.jq).T - self.b, 2) + (4 * self.eps + LAPACK) * s[0])
        return s[:k], r[:k], (np.minimum(r, squared) + rounding)[:k], rounding

    def triplets(
        self, k: int, right: tuple[int, ...], r: Float[np.ndarray, " k"], bound: Float[np.ndarray, " k"]
    ) -> SVD:
        """The `k` largest."""
        y, s, zt = np.linalg.svd(self.b, full_matrices=False)
        dtype = self.p.dtype
        u = self.p.sums(y[:, :k].T.astype(dtype)).T
        v = self.q.sums(zt[:k].astype(dtype)).reshape(k, *right)
        return SVD(u, s[:k].astype(dtype), v, r, bound, "krylov")


def _crowded(s: Float[np.ndarray, " k"], r: Float[np.ndarray, " k"], width: int) -> bool:
    """Whether `width` of the values cannot be told from one that is repeated."""
    runs = len(s) - width + 1
    residual = np.max([r[i : i + runs] for i in range(width)], axis=0)
    return bool(np.any(s[:runs] - s[width - 1 :] <= 8 * residual + CROWDED * s[:runs]))


def expected_products(k: int, tokens: int) -> int:
    """About how many vectors pass the map, and as many its transpose, for `k` triplets."""
    return 5 * k + 12 * default_width(tokens)


def cheaper(shape: tuple[int, int, int], k: int) -> str:
    r"""``"krylov"`` or ``"dense"``: which is expected to take less time for `k` triplets of ``[d, t, e]``.

    The dense map takes $d$ products, all together, which halves their time. Krylov takes `expected_products`, a block
    of width $w$ at a time; where a block has fewer than `FULL` positions it takes as long as if it had so many. Maps of
    fewer than `SMALL` entries are soonest dense.
    """
    d, tokens, e = shape
    if d * tokens * e < SMALL:
        return "dense"
    width = default_width(tokens)
    products = expected_products(k, tokens) * max(1.0, FULL / (width * tokens))
    return "krylov" if 2 * products < d else "dense"
