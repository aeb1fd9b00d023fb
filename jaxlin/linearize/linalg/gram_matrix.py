r"""Gram matrices $J J^\top = \sum_t J_t J_t^\top$, which give every singular value of a map that is never stored.

The rows of $J$ are computed in bands. One band stays in memory while the rows after it are computed block by block, so
that $p$ bands take $d\,(p + 1) / 2$ rows. A map that fits in `memory` is one band.

Squaring halves the digits. Sums are in float64, so that rows in float32 give singular values to their own rounding,
about $10^{-7} \sigma_1$. From rows in float64, values below $10^{-8} \sigma_1$ are lost: take the SVD of the dense map.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from jaxlin.common.annotations import is_integer
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.sharding import to_numpy

MAX_BAND_BYTES = 2**30
"""The bytes of rows that a band may take."""


@dataclass(frozen=True, eq=False)
class Gram:
    r"""The Gram matrices of the parts of a map, whose sum is $J J^\top$.

    Attributes:
        first: the Gram matrix of the first token's map, ``[d, d]``.
        rest: that of the map of all other tokens, ``[d, d]``.
        tokens: those of each token's map, ``[t, d, d]``; None without ``each_token=True``.
    """

    first: Float[np.ndarray, "d d"]
    rest: Float[np.ndarray, "d d"]
    tokens: Float[np.ndarray, "t d d"] | None = None

    @property
    def joint(self) -> Float[np.ndarray, "d d"]:
        r"""$J J^\top$ of the joint map."""
        return self.first + self.rest


def singular_values(gram: Float[np.ndarray, "*b d d"]) -> Float[np.ndarray, "*b d"]:
    """The singular values of maps from their Gram matrices, the largest first."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))[..., ::-1]


def left_vectors(gram: Float[np.ndarray, "d d"]) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, " d"]]:
    """The left singular vectors, as columns, and the singular values of a map, the largest first."""
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, ::-1], np.sqrt(np.maximum(values, 0))[::-1]


def gram_from_dense(jacobian: Shaped[np.ndarray, "d t e"]) -> Gram:
    """The Gram matrices of a dense map."""
    d = len(jacobian)
    first, rest = (part.astype(np.float64).reshape(d, -1) for part in (jacobian[:, :1], jacobian[:, 1:]))
    return Gram(first @ first.T, rest @ rest.T)


def gram_from_rows(
    rmatvec: Callable[[Any], Any],
    shape: tuple[int, int, int],
    dtype: Any,
    *,
    block: int,
    each_token: bool = False,
    memory: int = MAX_BAND_BYTES,
) -> Gram:
    r"""The Gram matrices of an operator ``[d, t, e]``, from its rows.

    Args:
        rmatvec: $u \mapsto J^\top u$ with a leading batch axis, as `LocalMap.rmatvec`.
        shape: ``(d, t, e)``.
        dtype: the dtype of the rows.
        block: how many rows to compute together.
        each_token: whether to return the Gram matrix of each token's map too.
        memory: how many bytes a band may take; at least those of one block.

    Raises:
        JaxlinError: `block` or `memory` is not a positive integer, or `memory` is less than a block of rows takes.
    """
    for name, number in (("block", block), ("memory", memory)):
        if not is_integer(number) or number < 1:
            raise JaxlinError(f"Gram, {name}: expected an integer of at least 1; found {quoted(number)}.")
    d, tokens = shape[0], shape[1]
    row_size = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    if memory < (size := block * row_size):
        raise JaxlinError(f"Gram: expected memory for a block of {block} rows, {size} bytes; found {memory}.")
    # Several blocks are multiplied together: each product first converts the band to float64.
    step = block * max(1, min(64 // block, memory // row_size // block))
    height = min(d, memory // row_size // step * step)
    first, rest = np.zeros((d, d)), np.zeros((d, d))
    per_token = np.zeros((tokens, d, d)) if each_token else None

    def rows(start: int) -> Shaped[np.ndarray, "b t e"]:
        blocks = range(start, min(start + step, d), block)
        units = [jax.nn.one_hot(jnp.arange(row, row + block), d, dtype=dtype) for row in blocks]
        return np.concatenate([to_numpy(rmatvec(u)) for u in units])[: d - start]

    for top in range(0, d, height):
        end = min(top + height, d)
        band = np.zeros((end - top, *shape[1:]), dtype)
        for start in range(top, d, step):
            block_rows = rows(start)
            stop = start + len(block_rows)
            if start < end:
                band[start - top : stop - top] = block_rows
            # Only the lower triangle is computed: the rows of the band up to those of this block.
            earlier = band[: stop - top]
            for t in range(tokens):
                product = block_rows[:, t].astype(np.float64) @ earlier[:, t].astype(np.float64).T
                total = first if t == 0 else rest
                for a in (total,) if per_token is None else (total, per_token[t]):
                    a[start:stop, top : top + len(earlier)] += product
    for a in (first, rest) if per_token is None else (first, rest, *per_token):
        a[:] = np.tril(a) + np.tril(a, -1).T
    return Gram(first, rest, per_token)
