r"""Gram matrices $J J^\top = \sum_t J_t J_t^\top$: every singular value of a map without ever storing it.

The rows of $J$ come in bands; a band is kept while the rows after it pass, so that with $p$ bands
$d\,(p + 1) / 2$ rows are computed. A map that fits in `memory` is one band.

Squaring halves the digits: sums are in float64, so that rows in float32 give their singular values to their own
rounding, about $10^{-7} \sigma_1$. Of rows in float64 values below $10^{-8} \sigma_1$ are lost; take the SVD of the
dense map for those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.sharding import to_numpy
from jaxlin.nn.sites import is_integer

MEMORY = 2**30
"""Bytes of rows that are kept together."""


@dataclass(frozen=True, eq=False)
class Gram:
    r"""$J J^\top$ by the part of the input that it comes from.

    Attributes:
        first: of the first token's map, ``[d, d]``.
        rest: of the map of the other tokens.
        tokens: of each token's map, ``[t, d, d]``; None where it was not asked for.
    """

    first: Float[np.ndarray, "d d"]
    rest: Float[np.ndarray, "d d"]
    tokens: Float[np.ndarray, "t d d"] | None = None

    @property
    def whole(self) -> Float[np.ndarray, "d d"]:
        """Of the joint map."""
        return self.first + self.rest


def singular_values(gram: Float[np.ndarray, "*b d d"]) -> Float[np.ndarray, "*b d"]:
    """The singular values of the maps that have these Gram matrices, the largest first."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))[..., ::-1]


def left_vectors(gram: Float[np.ndarray, "d d"]) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, " d"]]:
    """Left singular vectors, in columns, and singular values, the largest first."""
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, ::-1], np.sqrt(np.maximum(values, 0))[::-1]


def gram_from_dense(jacobian: Shaped[np.ndarray, "d t e"]) -> Gram:
    """The Gram matrix of a dense map."""
    d = len(jacobian)
    first, rest = (part.astype(np.float64).reshape(d, -1) for part in (jacobian[:, :1], jacobian[:, 1:]))
    return Gram(first @ first.T, rest @ rest.T)


def gram_from_rows(
    pull: Callable[[Any], Any],
    shape: tuple[int, int, int],
    dtype: Any,
    *,
    block: int,
    each_token: bool = False,
    memory: int = MEMORY,
) -> Gram:
    r"""The Gram matrix of an operator ``[d, t, e]`` from its rows.

    Args:
        pull: $u \mapsto J^\top u$ with a leading batch axis, as `LocalMap.rmatvec`.
        shape: ``(d, t, e)``.
        dtype: of the rows.
        block: rows computed together.
        each_token: whether to give that of each token's map too.
        memory: bytes of rows that may be kept; it must hold one block.

    Raises:
        JaxlinError: `memory` does not hold one block of rows.
    """
    for name, number in (("block", block), ("memory", memory)):
        if not is_integer(number) or number < 1:
            raise JaxlinError(f"Gram, {name}: expected an integer of at least 1; found {quoted(number)}.")
    d, tokens = shape[0], shape[1]
    row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    if memory < block * row:
        raise JaxlinError(f"Gram: expected memory for a block of {block} rows, {block * row} bytes; found {memory}.")
    # Bands of several blocks, so that what is kept is widened to float64 seldom.
    step = block * max(1, min(64 // block, memory // row // block))
    height = min(d, memory // row // step * step)
    first, rest = np.zeros((d, d)), np.zeros((d, d))
    each = np.zeros((tokens, d, d)) if each_token else None

    def rows(start: int) -> Shaped[np.ndarray, "b t e"]:
        blocks = range(start, min(start + step, d), block)
        units = [jax.nn.one_hot(jnp.arange(row, row + block), d, dtype=dtype) for row in blocks]
        return np.concatenate([to_numpy(pull(u)) for u in units])[: d - start]

    for top in range(0, d, height):
        end = min(top + height, d)
        kept = np.zeros((end - top, *shape[1:]), dtype)
        for start in range(top, d, step):
            part = rows(start)
            if start < end:
                kept[start - top : start - top + len(part)] = part
            here = kept[: start - top + len(part)]
            for t in range(tokens):
                product = part[:, t].astype(np.float64) @ here[:, t].astype(np.float64).T
                total = first if t == 0 else rest
                for a in (total,) if each is None else (total, each[t]):
                    a[start : start + len(part), top : top + len(here)] += product
    for a in (first, rest) if each is None else (first, rest, *each):
        a[:] = np.tril(a) + np.tril(a, -1).T
    return Gram(first, rest, each)
