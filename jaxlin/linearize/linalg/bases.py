"""Orthonormal bases that grow by blocks, on the host or on an accelerator, and functions that orthogonalize blocks.

A block of vectors is ``[b, n]``: each row is a vector. scipy's `qr_insert` is not used, because
it needs the basis as one array on the host; here it stays in blocks on the device of the vectors.
"""

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.devices import free_memory
from jaxlin.nn.sharding import to_numpy

Rows = Array | np.ndarray

COLUMNS_IN_CACHE = 2**15
"""How many columns of a linear combination are computed at a time, so that they stay in a CPU's cache."""

MAX_MEMORY_SHARE = 1 / 4
"""The largest share of a device's free memory for a basis of the expected size; it may grow to twice that size."""


class Basis:
    """Orthonormal vectors on the host.

    They are stored as a list of blocks, because one array would have to be copied at every step.
    """

    def __init__(self, features: int, dtype: np.dtype[Any]) -> None:
        self.features, self.dtype = features, dtype
        self._blocks: list[Any] = []

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def add(self, rows: Float[Rows, "c n"]) -> None:
        """Add vectors that are orthonormal, to one another and to the basis."""
        self._blocks.append(rows)

    def coefficients(self, rows: Float[Rows, "b n"]) -> Float[np.ndarray, "b m"]:
        """The inner products of `rows` with the vectors of the basis, on the host."""
        empty = np.zeros((len(rows), 0), self.dtype)
        return np.concatenate([empty, *self._inner_by_block(rows)], axis=1)

    def subtract(self, rows: Float[Rows, "b n"], coefficients: Float[np.ndarray, "b m"]) -> Float[Rows, "b n"]:
        """`rows` minus the linear combinations of the basis with these coefficients."""
        return rows - self.combine(coefficients)

    def combine(self, coefficients: Float[np.ndarray, "b m"]) -> Float[np.ndarray, "b n"]:
        """The linear combinations of the basis with these coefficients, on the host."""
        vectors = np.zeros((len(coefficients), self.features), self.dtype)
        for start in range(0, self.features, COLUMNS_IN_CACHE):
            columns = slice(start, start + COLUMNS_IN_CACHE)
            for part, block in self._by_block(coefficients):
                vectors[:, columns] += part @ block[:, columns]
        return vectors

    def _inner_by_block(self, rows: Float[Rows, "b n"]) -> list[np.ndarray]:
        return [self.inner(rows, block) for block in self._blocks]

    def _by_block(self, coefficients: Float[np.ndarray, "b m"]) -> list[tuple[np.ndarray, Any]]:
        ends = np.cumsum([len(block) for block in self._blocks])[:-1]
        return list(zip(np.split(coefficients, ends, axis=1), self._blocks, strict=False))

    def flatten(self, rows: Any) -> Float[Rows, "b n"]:
        """Products of a map, ``[b, ...]``, as vectors in the memory of the basis."""
        return to_numpy(rows).reshape(len(rows), -1)

    def norm(self, rows: Float[Rows, "b n"]) -> float:
        """The norm of a block as a matrix (Frobenius)."""
        return float(np.linalg.norm(rows))

    def inner(self, a: Float[Rows, "b n"], b: Float[Rows, "c n"]) -> Float[np.ndarray, "b c"]:
        """The inner products of two blocks, on the host."""
        return np.asarray(a @ b.T)

    def multiply(self, coefficients: Float[np.ndarray, "c b"], rows: Float[Rows, "b n"]) -> Float[Rows, "c n"]:
        """The linear combinations of `rows` with these coefficients."""
        return np.asarray(coefficients.astype(self.dtype) @ rows)

    def lq(self, rows: Float[Rows, "b n"]) -> tuple[Float[np.ndarray, "b b"], Float[Rows, "b n"]]:
        """The lower-triangular matrix, on the host, and the orthonormal rows whose product is `rows`."""
        q, r = np.linalg.qr(rows.T)
        return r.T, q.T

    def pad(self, rows: Float[Rows, "c n"], width: int) -> Float[Rows, "b n"]:
        """`rows` and rows of zero after them, so that the products of a map are compiled for one shape."""
        return np.concatenate([rows, np.zeros((width - len(rows), self.features), self.dtype)])


class DeviceBasis(Basis):
    """Orthonormal vectors on the accelerator that computes them; only their coefficients are copied to the host."""

    def subtract(self, rows: Float[Rows, "b n"], coefficients: Float[np.ndarray, "b m"]) -> Float[Rows, "b n"]:
        """`rows` minus the linear combinations of the basis with these coefficients."""
        for part, block in self._by_block(coefficients):
            rows = _subtract(rows, part, block)
        return rows

    def combine(self, coefficients: Float[np.ndarray, "b m"]) -> Float[np.ndarray, "b n"]:
        """The linear combinations of the basis with these coefficients, on the host."""
        return -np.asarray(self.subtract(jnp.zeros((len(coefficients), self.features), self.dtype), coefficients))

    def flatten(self, rows: Any) -> Float[Rows, "b n"]:
        """Products of a map, ``[b, ...]``, as vectors in the memory of the basis."""
        return jnp.asarray(rows, self.dtype).reshape(len(rows), -1)

    def norm(self, rows: Float[Rows, "b n"]) -> float:
        """The norm of a block as a matrix (Frobenius)."""
        return float(_norm(rows))

    def inner(self, a: Float[Rows, "b n"], b: Float[Rows, "c n"]) -> Float[np.ndarray, "b c"]:
        """The inner products of two blocks, on the host."""
        return np.asarray(_inner(a, b))

    def _inner_by_block(self, rows: Float[Rows, "b n"]) -> list[np.ndarray]:
        # All products are queued before the first is copied: copied one by one, each would delay the next.
        return jax.device_get([_inner(rows, block) for block in self._blocks])

    def multiply(self, coefficients: Float[np.ndarray, "c b"], rows: Float[Rows, "b n"]) -> Float[Rows, "c n"]:
        """The linear combinations of `rows` with these coefficients."""
        return jnp.matmul(coefficients.astype(self.dtype), rows, precision=jax.lax.Precision.HIGHEST)

    def lq(self, rows: Float[Rows, "b n"]) -> tuple[Float[np.ndarray, "b b"], Float[Rows, "b n"]]:
        """The lower-triangular matrix, on the host, and the orthonormal rows whose product is `rows`."""
        lower, unit = _lq(rows)
        return np.asarray(lower), unit

    def pad(self, rows: Float[Rows, "c n"], width: int) -> Float[Rows, "b n"]:
        """`rows` and rows of zero after them, so that the products of a map are compiled for one shape."""
        return jnp.pad(rows, ((0, width - len(rows)), (0, 0)))


@jax.jit
def _norm(rows: Float[Array, "b n"]) -> Float[Array, ""]:
    # The rows are scaled first, because the squares of small numbers underflow.
    largest = jnp.max(jnp.abs(rows))
    return largest * jnp.linalg.norm(rows / jnp.where(largest > 0, largest, 1))


@jax.jit
def _inner(a: Float[Array, "b n"], b: Float[Array, "c n"]) -> Array:
    return jnp.einsum("bn,cn->bc", a, b, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _subtract(rows: Float[Array, "b n"], coefficients: Float[Array, "b c"], block: Float[Array, "c n"]) -> Array:
    return rows - jnp.matmul(coefficients, block, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _lq(rows: Float[Array, "b n"]) -> tuple[Array, Array]:
    with jax.default_matmul_precision("highest"):
        q, r = jnp.linalg.qr(rows.T)
    return r.T, q.T


def platforms(like: Any) -> list[str]:
    """The platform of each device of an array; none if `like` is a tracer or not an array of JAX."""
    on_devices = isinstance(like, jax.Array) and not isinstance(like, jax.core.Tracer)
    return [device.platform for device in like.devices()] if on_devices else []


def choose_basis(like: Any, n_vectors: int) -> type[Basis]:
    """`DeviceBasis` if `like` is on one accelerator, with room for `n_vectors` of its shape; otherwise `Basis`.

    On a CPU it is `Basis`, because NumPy multiplies few long vectors faster there than XLA does.
    """
    names = platforms(like)
    if len(names) != 1 or names == ["cpu"]:
        return Basis
    size = n_vectors * math.prod(like.shape) * like.dtype.itemsize
    return DeviceBasis if size <= MAX_MEMORY_SHARE * free_memory() else Basis


def decompose(
    rows: Float[Rows, "b n"], basis: Basis, min_length: float
) -> tuple[Float[np.ndarray, "b m"], Float[Rows, "c n"], Float[np.ndarray, "b c"]]:
    """The coefficients of `rows` in `basis`; new orthonormal vectors for the remainder; the coefficients in those.

    Directions in which the remainder is no longer than `min_length` are rounding, and get no new vector.
    """
    coefficients = np.zeros((len(rows), len(basis)))
    for _ in range(2):
        step = basis.coefficients(rows)
        rows, coefficients = basis.subtract(rows, step), coefficients + step
    lower, unit = basis.lq(rows)
    _, lengths, rotation = np.linalg.svd(lower)
    # Orthogonalized again, because a short vector that is scaled to length 1 is no longer orthogonal to the basis.
    new = orthonormalize(basis.multiply(rotation[lengths > min_length], unit), basis, 1)
    return coefficients, new, basis.inner(rows, new).astype(np.float64)


def orthonormalize(rows: Float[Rows, "c n"], basis: Basis, times: int = 2) -> Float[Rows, "c n"]:
    """An orthonormal basis of `rows`, orthogonal to `basis`; the second time removes the rounding of the first."""
    for _ in range(times):
        rows = basis.subtract(rows, basis.coefficients(rows))
        if len(rows):
            rows = basis.lq(rows)[1]
    return rows
