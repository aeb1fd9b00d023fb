"""Edits along given vectors: addition, ablation and swap, which are the baselines of the paper's operators."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.arrays import Leaf
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import Site
from jaxlin.steering.edits import Edit, SteeringError, check_where


def unit_vector(values: Any, name: str = "direction") -> Float[Array, " d"]:
    """`values`, divided by their norm.

    Raises:
        SteeringError: not a vector, or one of zero or infinite length.
    """
    vector = np.asarray(values)
    vector = vector.astype(np.promote_types(vector.dtype, np.float32))
    length = np.linalg.norm(vector)
    if vector.ndim != 1 or not 0 < length < np.inf:
        raise SteeringError(
            f"{name}: expected a vector of finite, positive length; found shape {vector.shape}, {length}."
        )
    return jnp.asarray(vector / length)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Add(Edit):
    r"""$h \mapsto h + s\,\lVert h \rVert\, a$: vector addition, with a strength in units of the norm of the stream.

    $\lVert h \rVert$ is the norm of the value at each position. Source: Turner et al., "Activation Addition", 2023; the
    unit is Neuronpedia's.

    Attributes:
        direction: $a$, a unit vector, ``[d]``: see `add`.
    """

    direction: Leaf

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """`h` plus a share of its norm along the direction."""
        size = self.strength * jnp.linalg.norm(h, axis=-1, keepdims=True)
        return (h + size * self.direction[None, :]).astype(h.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """The direction."""
        return {"direction": self.direction}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Ablate(Edit):
    r"""$h \mapsto h - s\,Q Q^\top h$: components along some directions are removed; at $s = 1$ this is a projection.

    Source: Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", 2024.

    Attributes:
        basis: $Q^\top$, ``[k, d]``, orthonormal rows that span the directions: see `ablate`.
    """

    basis: Leaf

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """`h` minus the share $s$ of its components."""
        coordinates = jnp.einsum("td,kd->tk", h, self.basis, precision=HIGHEST)
        return (h - self.strength * jnp.einsum("tk,kd->td", coordinates, self.basis, precision=HIGHEST)).astype(h.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """The basis."""
        return {"basis": self.basis}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Swap(Edit):
    r"""$h \mapsto h + s\,(\alpha - \beta)(b - a)$ with $h = \alpha a + \beta b + \text{rest}$: two components exchange.

    $\alpha$ and $\beta$ are the coordinates of $h$ in the plane of the unit vectors $a$ and $b$, by their
    pseudo-inverse, and the rest is orthogonal to both. At $s = 1$, swapping twice is the identity; at $s = 1/2$ the two
    coordinates become equal.

    Attributes:
        read: $p_a - p_b$, ``[d]``, the difference of the rows of the pseudo-inverse; its product with $h$ is
            $\alpha - \beta$. See `swap`.
        write: $b - a$, ``[d]``.
    """

    read: Leaf
    write: Leaf

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """`h` with the components exchanged."""
        difference = jnp.einsum("td,d->t", h, self.read, precision=HIGHEST)
        return (h + self.strength * difference[:, None] * self.write[None, :]).astype(h.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """The vector that is read and the vector that is written."""
        return {"read": self.read, "write": self.write}


def add(site: Site, direction: Any, strength: float = 1.0, *, where: Any = "all") -> Add:
    """`Add` along a vector ``[d]`` of any length, at the positions `where`: see `jaxlin.steering.Where`.

    Raises:
        SteeringError: not a vector, one of zero or infinite length, or no positions.
    """
    return Add(site=site, strength=strength, where=check_where(where), direction=unit_vector(direction))


def ablate(site: Site, directions: Any, strength: float = 1.0, *, where: Any = "all") -> Ablate:
    """`Ablate` one direction, ``[d]``, or the span of several, ``[k, d]``, at the positions `where`.

    Raises:
        SteeringError: a vector of zero or infinite length, directions that are linearly dependent, or no positions.
    """
    rows = np.stack([unit_vector(row) for row in np.atleast_2d(np.asarray(directions))])
    _, s, basis = np.linalg.svd(rows, full_matrices=False)
    _check_independent(s, len(rows))
    return Ablate(site=site, strength=strength, where=check_where(where), basis=jnp.asarray(basis))


def swap(site: Site, a: Any, b: Any, strength: float = 1.0, *, where: Any = "all") -> Swap:
    """`Swap` the components along two vectors ``[d]`` of any length, at the positions `where`.

    Raises:
        SteeringError: a vector of zero or infinite length, two that are parallel, or no positions.
    """
    plane = np.stack([unit_vector(a, "a"), unit_vector(b, "b")], axis=1)
    _check_independent(np.linalg.svd(plane, compute_uv=False), 2)
    inverse = np.linalg.pinv(plane)
    read, write = jnp.asarray(inverse[0] - inverse[1]), jnp.asarray(plane[:, 1] - plane[:, 0])
    return Swap(site=site, strength=strength, where=check_where(where), read=read, write=write)


def _check_independent(s: Float[np.ndarray, " k"], count: int) -> None:
    """Raise an error unless `count` unit vectors with the singular values `s` are linearly independent."""
    if len(s) < count or s[-1] <= 1e-5 * s[0]:
        raise SteeringError(f"Directions: expected {count} that are linearly independent; found fewer.")
