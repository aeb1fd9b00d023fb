r"""The residual of a map, estimated from a few of its rows, and how far the estimate may be from it.

A row $u^\top J$ gives $u \cdot r = u^\top J x + u \cdot (b - f(x))$ for the error $r = J x + b - f(x)$ at the price of
one backward pass. The number of rows follows from that price.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxlin.common.annotations import is_integer
from jaxlin.common.arrays import Leaf, relative_error
from jaxlin.common.errors import JaxlinError
from jaxlin.common.operations import NUMBER, Cost, cost_of
from jaxlin.common.printable import quoted
from jaxlin.common.progress import progress_bar
from jaxlin.linearize.frozen import record
from jaxlin.linearize.products import fold_rows, rmatvec
from jaxlin.linearize.rows import default_block
from jaxlin.nn.freeze_modes import RematFactors
from jaxlin.nn.sharding import to_numpy
from jaxlin.results import Result

MAX_DIRECTIONS = 32
"""The most random directions in which a residual is measured unless more are asked for."""

UNNOTICED = 10**9
"""Operations that nobody waits for, some hundredths of a second: a residual may always cost as many."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class ResidualEstimate(Result):
    r"""The residual $\lVert r \rVert / \lVert f(x) \rVert$ of a map, $r = J x + b - f(x)$, from random directions.

    In $k$ directions $u_i \sim \mathcal{N}(0, I)$ the products $u_i \cdot r$ are independent normal numbers with the
    variance $\lVert r \rVert^2$, so that `value`$^2 = \frac1k \sum_i (u_i \cdot r)^2 / \lVert f(x) \rVert^2$ has the
    right expectation and $k\,$`value`$^2$ over the true square is distributed as $\chi^2_k$. With a confidence of
    $1 - \alpha$ the residual is therefore between `value`$\sqrt{k / \chi^2_{k,\,1 - \alpha/2}}$ and
    `value`$\sqrt{k / \chi^2_{k,\,\alpha/2}}$. At 95 % these are 0.45 and 32 times the value for one direction, 0.60 and
    2.9 times for four, and 0.80 and 1.3 times for 32.

    A wide interval does not hide a defect, because the bar is so much lower. That a residual of $\rho$ gives a value
    below $\beta$ has a probability of at most $(e^{1/2}\,\beta / \rho)^k$, and in one direction of
    $\sqrt{2/\pi}\,\beta / \rho$: 2.4e-4 for an error of 1 % and the bar 3e-6 of float32, 8e-12 for that of float64,
    1e-13.

    Source: C. S. Kenney and A. J. Laub, Small-sample statistical condition estimates for general matrix functions, SIAM
    J. Sci. Comput. 15 (1994), which estimates norms of vectors so; the bound is Chernoff's for $\chi^2_k$.

    Attributes:
        value: the estimate.
        lower: the lower end of the interval.
        upper: the upper end of the interval.
        directions: $k$.
        confidence: $1 - \alpha$.
    """

    value: Leaf
    lower: Leaf
    upper: Leaf
    directions: int = field(metadata={"static": True})
    confidence: float = field(default=0.95, metadata={"static": True})

    def __str__(self) -> str:
        return f"{self.value:.1e}, {self.reliability}"

    @property
    def reliability(self) -> str:
        """How it was measured and the interval, in words."""
        count = f"{self.directions} random direction{'' if self.directions == 1 else 's'}"
        return f"measured in {count}: {self.lower:.1e} to {self.upper:.1e} with {100 * self.confidence:g} % confidence"


def interval_factors(directions: int, confidence: float = 0.95) -> tuple[float, float]:
    """The ends of the interval of `ResidualEstimate`, relative to its value."""
    # It takes a tenth of a second to import.
    from scipy.special import gammaincinv

    tail = (1 - confidence) / 2
    ends = (float(np.sqrt(directions / (2 * gammaincinv(directions / 2, p)))) for p in (1 - tail, tail))
    return next(ends), next(ends)


def check_request(directions: Any, confidence: Any, seed: Any) -> None:
    """Check the arguments of `LocalMap.estimate_residual`.

    Raises:
        JaxlinError: one of them is not what its documentation says.
    """
    if directions is not None and not (is_integer(directions) and directions >= 1):
        raise JaxlinError(f"Directions: expected an integer of at least 1; found {quoted(directions)}.")
    if not is_integer(seed):
        raise JaxlinError(f"Seed: expected an integer; found {quoted(seed)}.")
    if isinstance(confidence, bool) or not (isinstance(confidence, float) and 0 < confidence < 1):
        raise JaxlinError(f"Confidence: expected a number between 0 and 1, as 0.95; found {quoted(confidence)}.")


def estimate(lmap: Any, directions: int | None, confidence: float, seed: int, progress: bool) -> ResidualEstimate:
    """The estimate of `LocalMap.estimate_residual`."""
    d, tokens, _ = lmap.shape
    k = default_directions(lmap) if directions is None else int(directions)
    u = jax.random.normal(jax.random.key(seed), (k, d), lmap.output.dtype)
    size = max(d, lmap.model.config.neurons) * lmap.output.dtype.itemsize
    block = default_block(k, tokens, size)
    # All blocks have one shape, so that they are compiled once: directions past the last are zero.
    padded = jnp.pad(u, ((0, -k % block), (0, 0)))
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(lmap))
    parts = []
    with progress_bar(show=progress and not traced, total=k, unit="direction", desc="residual") as bar:
        for start in range(0, k, block):
            rows = lmap.rmatvec(padded[start : start + block])
            parts.append(_traced_sums(rows, lmap.x) if traced else _sums(rows, lmap.x))
            bar.update(min(block, k - start))
    if traced:
        rest = jnp.matmul(u, lmap.bias - lmap.output, precision=jax.lax.Precision.HIGHEST)
        defect = jnp.concatenate(parts)[:k] + rest
        value = relative_error(jnp.sqrt(jnp.mean(defect**2)), jnp.linalg.norm(lmap.output))
    else:
        defect = np.concatenate(parts)[:k] + _wide(u) @ (_wide(lmap.bias) - _wide(lmap.output))
        value = float(relative_error(np.sqrt(np.mean(defect**2)), np.linalg.norm(_wide(lmap.output))))
    lower, upper = interval_factors(k, confidence)
    return ResidualEstimate(value, lower * value, upper * value, k, confidence)


def _sums(rows: Any, x: Any) -> np.ndarray:
    """The sum of each row times the input, ``[r]``, in float64.

    In float32, one term after another, it rounds at 400 tokens by ten times as much as the rows themselves.
    """
    wide = _wide(x)
    return np.array([np.sum(_wide(row) * wide) for row in to_numpy(rows)])


def _traced_sums(rows: Any, x: Any) -> Any:
    """The same within a transform: token by token first, which rounds less."""
    return jnp.sum(jnp.einsum("rtd,td->rt", rows, x, precision=jax.lax.Precision.HIGHEST), axis=1)


def _wide(a: Any) -> np.ndarray:
    return to_numpy(a).astype(np.float64)


def default_directions(lmap: Any) -> int:
    """How many rows of `lmap` cost no more than the forward pass that recorded it, or than `UNNOTICED`.

    It is 1 at least and `MAX_DIRECTIONS` at most. Costs are counted from shapes, so that the same map has the same
    directions everywhere. Rows that are computed together share what a single one reads.
    """
    parameters = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(lmap.model))
    if (2 * MAX_DIRECTIONS * lmap.frozen.tokens + NUMBER) * parameters <= UNNOTICED:
        return MAX_DIRECTIONS  # without tracing anything: no row multiplies more
    row, budget = row_cost(lmap), max(recording_cost(lmap).total, UNNOTICED)
    return min(max((budget - row.transfers) // max(row.products, 1), 1), MAX_DIRECTIONS)


def row_cost(lmap: Any) -> Cost:
    """The cost of one row of `lmap`."""
    u = jax.ShapeDtypeStruct((1, lmap.output.shape[0]), lmap.output.dtype)
    return cost_of(rmatvec.trace(lmap, u, fold=fold_rows(lmap, 1)).jaxpr)


def recording_cost(lmap: Any) -> Cost:
    """The cost of the pass that recorded the factors of `lmap`, at all positions of its prompt."""
    tokens, model = lmap.x.shape[0], lmap.model
    x = jax.eval_shape(type(model).embed, model, jax.ShapeDtypeStruct((tokens,), np.int32))
    remat = isinstance(lmap.frozen.layers, RematFactors)
    return cost_of(jax.make_jaxpr(functools.partial(record, rule=lmap.rule, remat=remat))(model, x))
