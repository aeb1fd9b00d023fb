"""Edits along given vectors: addition, ablation and swap, which are the baselines of the paper's operators."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.annotations import Number, described, is_numeric
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.arrays import Leaf
from jaxlin.common.printable import quoted
from jaxlin.nn.edits import Edit, SteeringError, check_units, check_where
from jaxlin.nn.layers import HIGHEST, broadcast_last
from jaxlin.nn.site_names import NamedSite


def unit_vector(values: Any, name: str = "direction") -> Float[Array, " d"]:
    """`values`, divided by their norm.

    Raises:
        SteeringError: not a vector, or one of zero or infinite length.
    """
    if not is_numeric(values):
        raise SteeringError(f"{name}: expected a vector of numbers; found {described(values)}.")
    check_not_traced(name, values)
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
    r"""$h \mapsto h + s\,\lVert h \rVert\, a$: vector addition, with a strength in units of the norm of the value.

    $\lVert h \rVert$ is the norm of the value at each position, and in each head where there are heads. In absolute
    units it is $h \mapsto h + s\,a$. Source: Turner et al., "Activation Addition", 2023; the relative unit is
    Neuronpedia's.

    Attributes:
        direction: $a$, ``[d]``, a unit vector in relative units: see `add`.
        scale: ``"relative"`` or ``"absolute"``.
    """

    direction: Leaf
    scale: str = field(default="relative", metadata={"static": True})

    def __call__(self, h: Float[Array, "*n"], drive: Float[Array, "t e"]) -> Float[Array, "*n"]:
        """`h` plus a multiple of the direction."""
        relative = self.scale == "relative"
        size = self.strength * (jnp.linalg.norm(h, axis=-1, keepdims=True) if relative else jnp.ones((1,) * h.ndim))
        return (h + size * broadcast_last(jnp.asarray(self.direction), h)).astype(h.dtype)

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

    def __call__(self, h: Float[Array, "*n"], drive: Float[Array, "t e"]) -> Float[Array, "*n"]:
        """`h` minus the share $s$ of its components."""
        coordinates = jnp.einsum("...d,kd->...k", h, self.basis, precision=HIGHEST)
        components = jnp.einsum("...k,kd->...d", coordinates, self.basis, precision=HIGHEST)
        return (h - self.strength * components).astype(h.dtype)

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

    def __call__(self, h: Float[Array, "*n"], drive: Float[Array, "t e"]) -> Float[Array, "*n"]:
        """`h` with the components exchanged."""
        difference = jnp.einsum("...d,d->...", h, self.read, precision=HIGHEST)[..., None]
        return (h + self.strength * difference * broadcast_last(self.write, h)).astype(h.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """The vector that is read and the vector that is written."""
        return {"read": self.read, "write": self.write}


@checked
def add(
    site: NamedSite,
    direction: Any,
    strength: Number = 1.0,
    *,
    scale: str = "relative",
    where: Any = "all",
    units: Any = None,
) -> Add:
    """`Add` along a vector ``[d]``, at the positions `where`: see `jaxlin.steering.Where`.

    With the scale ``"relative"`` only the direction of the vector matters, and a strength of 0.3 adds 0.3 of the norm
    of the value. With ``"absolute"`` the vector is added as it is, times the strength; it may be traced, as one that is
    trained, and may be zero.

    Raises:
        SteeringError: not a vector, in relative units one of zero or infinite length, another scale, or no positions.
    """
    if scale not in ("relative", "absolute"):
        raise SteeringError(f'Add, scale: expected "relative" or "absolute"; found {quoted(scale)}.')
    if scale == "relative":
        vector = unit_vector(direction)
    elif not is_numeric(direction):
        raise SteeringError(f"direction: expected a vector of numbers; found {described(direction)}.")
    elif np.ndim(vector := jnp.asarray(direction)) != 1:
        raise SteeringError(f"direction: expected a vector; found shape {np.shape(vector)}.")
    options = {"where": check_where(where), "units": check_units(units)}
    return Add(site=site, strength=strength, direction=vector, scale=scale, **options)


@checked
def ablate(
    site: NamedSite, directions: Any, strength: Number = 1.0, *, where: Any = "all", units: Any = None
) -> Ablate:
    """`Ablate` one direction, ``[d]``, or the span of several, ``[k, d]``, at the positions `where`.

    Raises:
        SteeringError: a vector of zero or infinite length, directions that are linearly dependent, or no positions.
    """
    if not is_numeric(directions):
        raise SteeringError(f"directions: expected one vector of numbers, or several; found {described(directions)}.")
    check_not_traced("directions", directions)
    rows = np.stack([unit_vector(row) for row in np.atleast_2d(np.asarray(directions))])
    _, s, basis = np.linalg.svd(rows, full_matrices=False)
    _check_independent(s, len(rows))
    options = {"where": check_where(where), "units": check_units(units)}
    return Ablate(site=site, strength=strength, basis=jnp.asarray(basis), **options)


@checked
def swap(site: NamedSite, a: Any, b: Any, strength: Number = 1.0, *, where: Any = "all", units: Any = None) -> Swap:
    """`Swap` the components along two vectors ``[d]`` of any length, at the positions `where`.

    Raises:
        SteeringError: a vector of zero or infinite length, two that are parallel, or no positions.
    """
    plane = np.stack([unit_vector(a, "a"), unit_vector(b, "b")], axis=1)
    _check_independent(np.linalg.svd(plane, compute_uv=False), 2)
    inverse = np.linalg.pinv(plane)
    read, write = jnp.asarray(inverse[0] - inverse[1]), jnp.asarray(plane[:, 1] - plane[:, 0])
    options = {"where": check_where(where), "units": check_units(units)}
    return Swap(site=site, strength=strength, read=read, write=write, **options)


def _check_independent(s: Float[np.ndarray, " k"], count: int) -> None:
    """Raise an error unless `count` unit vectors with the singular values `s` are linearly independent."""
    if len(s) < count or s[-1] <= 1e-5 * s[0]:
        raise SteeringError(f"Directions: expected {count} that are linearly independent; found fewer.")
