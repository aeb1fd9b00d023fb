"""Edits along given vectors: what the operators of the paper have to be measured against."""

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
from jaxlin.steering.edits import Edit, SteeringError, checked_where


def direction(values: Any, name: str = "direction") -> Float[Array, " d"]:
    """`values` as a unit vector.

    Raises:
        SteeringError: they are no vector, or one without a direction.
    """
    given = np.asarray(values)
    given = given.astype(np.promote_types(given.dtype, np.float32))
    length = np.linalg.norm(given)
    if given.ndim != 1 or not 0 < length < np.inf:
        raise SteeringError(
            f"{name}: expected a vector of finite, positive length; found shape {given.shape}, {length}."
        )
    return jnp.asarray(given / length)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Add(Edit):
    r"""$h \mapsto h + s\,\lVert h \rVert\, a$: vector addition, its strength in units of the norm of the stream there.

    $\lVert h \rVert$ is that of the value at each position. Source: Turner et al., "Activation Addition", 2023; the
    unit is Neuronpedia's.

    Attributes:
        along: $a$, a unit vector: see `add`.
    """

    along: Leaf

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """`h` and a share of its norm along the direction."""
        size = self.strength * jnp.linalg.norm(h, axis=-1, keepdims=True)
        return (h + size * self.along[None, :]).astype(h.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """The direction."""
        return {"along": self.along}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Ablate(Edit):
    r"""$h \mapsto h - s\,Q Q^\top h$: the components along some directions are removed; at $s = 1$ a projection.

    Source: Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", 2024.

    Attributes:
        basis: $Q^\top$, ``[k, d]``, orthonormal rows that span the directions: see `ablate`.
    """

    basis: Leaf

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """`h` less its components."""
        found = jnp.einsum("td,kd->tk", h, self.basis, precision=HIGHEST)
        return (h - self.strength * jnp.einsum("tk,kd->td", found, self.basis, precision=HIGHEST)).astype(h.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """The basis."""
        return {"basis": self.basis}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Swap(Edit):
    r"""$h \mapsto h + s\,(\alpha - \beta)(b - a)$ with $h = \alpha a + \beta b + \text{rest}$: two components exchange.

    $\alpha$ and $\beta$ are the coordinates of $h$ in the plane of the unit vectors $a$ and $b$, from its
    pseudo-inverse, and the rest is orthogonal to both. At $s = 1$, swapping twice is the identity; at $s = 1/2$ the
    two become equal.

    Attributes:
        apart: $b - a$, ``[d]``: see `swap`.
        reads: $p_a - p_b$, ``[d]``, the difference of the rows of the pseudo-inverse: it reads $\alpha - \beta$.
    """

    apart: Leaf
    reads: Leaf

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """`h` with the components exchanged."""
        difference = jnp.einsum("td,d->t", h, self.reads, precision=HIGHEST)
        return (h + self.strength * difference[:, None] * self.apart[None, :]).astype(h.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """What is read and what is written."""
        return {"apart": self.apart, "reads": self.reads}


def add(site: Site, along: Any, strength: float = 1.0, *, where: Any = "all") -> Add:
    """`Add` along a vector of any length, ``[d]``, at the positions of `where`: see `jaxlin.steering.Where`.

    Raises:
        SteeringError: no vector, one without a direction, or no positions.
    """
    return Add(site=site, strength=strength, where=checked_where(where), along=direction(along))


def ablate(site: Site, along: Any, strength: float = 1.0, *, where: Any = "all") -> Ablate:
    """`Ablate` one direction, ``[d]``, or the span of several, ``[k, d]``, at the positions of `where`.

    Raises:
        SteeringError: a vector without a direction, directions that are linearly dependent, or no positions.
    """
    rows = np.stack([direction(row) for row in np.atleast_2d(np.asarray(along))])
    _, s, basis = np.linalg.svd(rows, full_matrices=False)
    _refuse_dependent(s, len(rows))
    return Ablate(site=site, strength=strength, where=checked_where(where), basis=jnp.asarray(basis))


def swap(site: Site, a: Any, b: Any, strength: float = 1.0, *, where: Any = "all") -> Swap:
    """`Swap` the components along two vectors of any length, ``[d]``, at the positions of `where`.

    Raises:
        SteeringError: a vector without a direction, two that are parallel, or no positions.
    """
    plane = np.stack([direction(a, "a"), direction(b, "b")], axis=1)
    _refuse_dependent(np.linalg.svd(plane, compute_uv=False), 2)
    inverse = np.linalg.pinv(plane)
    apart, reads = plane[:, 1] - plane[:, 0], inverse[0] - inverse[1]
    return Swap(
        site=site, strength=strength, where=checked_where(where), apart=jnp.asarray(apart), reads=jnp.asarray(reads)
    )


def _refuse_dependent(s: np.ndarray, count: int) -> None:
    if len(s) < count or s[-1] <= 1e-5 * s[0]:
        raise SteeringError(f"Directions: expected {count} that are linearly independent; found fewer.")
