"""Orthonormal bases that grow by blocks, on the host or on the device of the vectors, and what makes rows orthogonal.

A block of vectors is ``[b, n]``, a vector a row.
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

CACHED = 2**15
"""Columns of a sum of vectors that are added up together: in the cache, not in memory."""

SHARE = 1 / 4
"""The part of a device's free memory that a basis may be expected to take: it may come to be twice as large."""


class Basis:
    """Orthonormal vectors on the host.

    They stay in the blocks they came in: to put them together would copy all of them at every step.
    """

    def __init__(self, features: int, dtype: np.dtype[Any]) -> None:
        self.features, self.dtype = features, dtype
        self._blocks: list[Any] = []

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def add(self, rows: Float[Rows, "c n"]) -> None:
        """Take more."""
        self._blocks.append(rows)

    def along(self, rows: Float[Rows, "b n"]) -> Float[np.ndarray, "b m"]:
        """The coefficients of `rows`."""
        none = np.zeros((len(rows), 0), self.dtype)
        return np.concatenate([none, *self._inners(rows)], axis=1)

    def without(self, rows: Float[Rows, "b n"], coefficients: Float[np.ndarray, "b m"]) -> Float[Rows, "b n"]:
        """`rows` less the vectors of these coefficients."""
        return rows - self.sums(coefficients)

    def sums(self, coefficients: Float[np.ndarray, "b m"]) -> Float[np.ndarray, "b n"]:
        """The vectors of these coefficients, on the host."""
        found = np.zeros((len(coefficients), self.features), self.dtype)
        for start in range(0, self.features, CACHED):
            columns = slice(start, start + CACHED)
            for part, block in self._parts(coefficients):
                found[:, columns] += part @ block[:, columns]
        return found

    def _inners(self, rows: Float[Rows, "b n"]) -> list[np.ndarray]:
        return [self.inner(rows, block) for block in self._blocks]

    def _parts(self, coefficients: Float[np.ndarray, "b m"]) -> list[tuple[np.ndarray, Any]]:
        ends = np.cumsum([len(block) for block in self._blocks])[:-1]
        return list(zip(np.split(coefficients, ends, axis=1), self._blocks, strict=False))

    def held(self, rows: Any) -> Float[Rows, "b n"]:
        """Products of a map, ``[b, ...]``, where the basis is."""
        return to_numpy(rows).reshape(len(rows), -1)

    def norm(self, rows: Float[Rows, "b n"]) -> float:
        """The norm of a block as a matrix (Frobenius)."""
        return float(np.linalg.norm(rows))

    def inner(self, a: Float[Rows, "b n"], b: Float[Rows, "c n"]) -> Float[np.ndarray, "b c"]:
        """The inner products of two blocks, on the host."""
        return np.asarray(a @ b.T)

    def combined(self, coefficients: Float[np.ndarray, "c b"], rows: Float[Rows, "b n"]) -> Float[Rows, "c n"]:
        """Linear combinations of `rows`."""
        return np.asarray(coefficients.astype(self.dtype) @ rows)

    def factored(self, rows: Float[Rows, "b n"]) -> tuple[Float[np.ndarray, "b b"], Float[Rows, "b n"]]:
        """A small matrix and orthonormal vectors whose product is `rows`."""
        q, r = np.linalg.qr(rows.T)
        return r.T, q.T

    def padded(self, rows: Float[Rows, "c n"], width: int) -> Float[Rows, "b n"]:
        """`rows` and zeros: one shape for all products, which are compiled for it."""
        return np.concatenate([rows, np.zeros((width - len(rows), self.features), self.dtype)])


class DeviceBasis(Basis):
    """Orthonormal vectors on the device that they are computed on, which coefficients alone leave until the end."""

    def without(self, rows: Float[Rows, "b n"], coefficients: Float[np.ndarray, "b m"]) -> Float[Rows, "b n"]:
        """`rows` less the vectors of these coefficients."""
        for part, block in self._parts(coefficients):
            rows = _less(rows, part, block)
        return rows

    def sums(self, coefficients: Float[np.ndarray, "b m"]) -> Float[np.ndarray, "b n"]:
        """The vectors of these coefficients, on the host."""
        return -np.asarray(self.without(jnp.zeros((len(coefficients), self.features), self.dtype), coefficients))

    def held(self, rows: Any) -> Float[Rows, "b n"]:
        """Products of a map where they are."""
        return jnp.asarray(rows, self.dtype).reshape(len(rows), -1)

    def norm(self, rows: Float[Rows, "b n"]) -> float:
        """The norm of a block as a matrix (Frobenius)."""
        return float(_norm(rows))

    def inner(self, a: Float[Rows, "b n"], b: Float[Rows, "c n"]) -> Float[np.ndarray, "b c"]:
        """The inner products of two blocks, on the host."""
        return np.asarray(_inner(a, b))

    def _inners(self, rows: Float[Rows, "b n"]) -> list[np.ndarray]:
        # Asked for one by one, each would be waited for before the next begins.
        return jax.device_get([_inner(rows, block) for block in self._blocks])

    def combined(self, coefficients: Float[np.ndarray, "c b"], rows: Float[Rows, "b n"]) -> Float[Rows, "c n"]:
        """Linear combinations of `rows`."""
        return jnp.matmul(coefficients.astype(self.dtype), rows, precision=jax.lax.Precision.HIGHEST)

    def factored(self, rows: Float[Rows, "b n"]) -> tuple[Float[np.ndarray, "b b"], Float[Rows, "b n"]]:
        """A small matrix, on the host, and orthonormal vectors whose product is `rows`."""
        lower, unit = _factored(rows)
        return np.asarray(lower), unit

    def padded(self, rows: Float[Rows, "c n"], width: int) -> Float[Rows, "b n"]:
        """`rows` and zeros."""
        return jnp.pad(rows, ((0, width - len(rows)), (0, 0)))


@jax.jit
def _norm(rows: Float[Array, "b n"]) -> Float[Array, ""]:
    # Scaled, or the squares of small numbers would vanish.
    largest = jnp.max(jnp.abs(rows))
    return largest * jnp.linalg.norm(rows / jnp.where(largest > 0, largest, 1))


@jax.jit
def _inner(a: Float[Array, "b n"], b: Float[Array, "c n"]) -> Array:
    return jnp.einsum("bn,cn->bc", a, b, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _less(rows: Float[Array, "b n"], coefficients: Float[Array, "b c"], block: Float[Array, "c n"]) -> Array:
    return rows - jnp.matmul(coefficients, block, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _factored(rows: Float[Array, "b n"]) -> tuple[Array, Array]:
    with jax.default_matmul_precision("highest"):
        q, r = jnp.linalg.qr(rows.T)
    return r.T, q.T


def platforms(like: Any) -> list[str]:
    """The platform of each device of an array; of none if it is no array of JAX, or a tracer."""
    held = isinstance(like, jax.Array) and not isinstance(like, jax.core.Tracer)
    return [device.platform for device in like.devices()] if held else []


def basis_beside(like: Any, vectors: int) -> type[Basis]:
    """Where to keep as many vectors of the shape of `like`: with it, if it is on one accelerator that has the room.

    On a CPU it is the host: NumPy multiplies few long vectors faster than XLA does there.
    """
    there = platforms(like)
    if len(there) != 1 or there == ["cpu"]:
        return Basis
    size = vectors * math.prod(like.shape) * like.dtype.itemsize
    return DeviceBasis if size <= SHARE * free_memory() else Basis


def split(
    rows: Float[Rows, "b n"], basis: Basis, floor: float
) -> tuple[Float[np.ndarray, "b m"], Float[Rows, "c n"], Float[np.ndarray, "b c"]]:
    """Coefficients of `rows` along `basis`; an orthonormal rest, without what is short; and coefficients along that."""
    along = np.zeros((len(rows), len(basis)))
    for _ in range(2):
        step = basis.along(rows)
        rows, along = basis.without(rows, step), along + step
    lower, unit = basis.factored(rows)
    _, lengths, turn = np.linalg.svd(lower)
    # Once more: what is short is no longer orthogonal to the basis when it is made a unit.
    rest = orthonormal(basis.combined(turn[lengths > floor], unit), basis, 1)
    return along, rest, basis.inner(rows, rest).astype(np.float64)


def orthonormal(rows: Float[Rows, "c n"], basis: Basis, times: int = 2) -> Float[Rows, "c n"]:
    """An orthonormal basis of `rows`, orthogonal to `basis`; a second time for what the first rounds."""
    for _ in range(times):
        rows = basis.without(rows, basis.along(rows))
        if len(rows):
            rows = basis.factored(rows)[1]
    return rows
