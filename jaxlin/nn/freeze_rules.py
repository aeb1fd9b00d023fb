r"""Freeze rules: which part of a gated MLP is frozen, and which part stays linear.

A gated MLP computes $\mathrm{act}(g) \odot u$ of its two branches, the gate $g$ and $u$ (`gate_proj` and `up_proj`).
With the slope $s = \mathrm{act}(g) / g$ this is $s \odot g \odot u$: a product in which either branch can be frozen. A
rule writes it as

$$a_g \odot g + a_u \odot u = \mathrm{act}(g) \odot u$$

and the factors $a_g$ and $a_u$ are frozen. Every rule for which this equation holds reconstructs the output exactly,
and each gives another local linear map: the map is not unique. Where the equation fails, the residual of the map shows
it, because the output of the model does not depend on the rule.

A rule of your own is a frozen dataclass with a method `factors`, passed where the names of rules are. This one gives
the rule ``"gate"`` the weight $\alpha$, and ``"up"`` the rest::

    @dataclass(frozen=True)
    class Mix:
        alpha: float

        def factors(self, g, u, slope, /):
            return BranchFactors(gate=(1 - self.alpha) * slope * u, up=self.alpha * slope * g)

    lmap = jaxlin.local_map(model, x, rule=Mix(0.3))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.common.arrays import Leaf
from jaxlin.common.errors import JaxlinError, one_of
from jaxlin.common.printable import quoted

Branch = TypeVar("Branch")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BranchFactors:
    """The frozen factors of the two branches of a gated MLP.

    Attributes:
        gate: $a_g$, which multiplies the gate branch, ``[t, f]``; None where that branch is left out of the map.
        up: $a_u$, which multiplies the up branch, likewise.
    """

    gate: Leaf = None
    up: Leaf = None

    def paired(self, gate: Callable[[], Branch], up: Callable[[], Branch]) -> list[tuple[Float[Array, "*t f"], Branch]]:
        """Each factor with its branch, or with the weight of its branch, which is computed only where there is one."""
        return [(a, branch()) for a, branch in ((self.up, up), (self.gate, gate)) if a is not None]


@runtime_checkable
class FreezeRule(Protocol):
    """Which part of a gated MLP is frozen. It must be hashable, because it is static under `jax.jit`."""

    def factors(self, g: Float[Array, "t f"], u: Float[Array, "t f"], slope: Float[Array, "t f"], /) -> BranchFactors:
        r"""The factors $a_g$ and $a_u$, with $a_g \odot g + a_u \odot u = s \odot g \odot u$.

        Args:
            g: the gate branch.
            u: the up branch.
            slope: $s = \mathrm{act}(g) / g$, in closed form where $g$ is 0.
        """
        ...


@dataclass(frozen=True)
class FreezeGate:
    r"""``"gate"``: $\mathrm{act}(g)$ is frozen, and the map is linear in $u$."""

    def factors(self, g: Array, u: Array, slope: Array, /) -> BranchFactors:
        r"""$a_u = s \odot g$."""
        return BranchFactors(up=g * slope)


@dataclass(frozen=True)
class FreezeUp:
    r"""``"up"``: $u \odot \mathrm{act}(g) / g$ is frozen, and the map is linear in $g$."""

    def factors(self, g: Array, u: Array, slope: Array, /) -> BranchFactors:
        r"""$a_g = s \odot u$."""
        return BranchFactors(gate=slope * u)


@dataclass(frozen=True)
class FreezeHalf:
    """``"half"``: the mean of the other two."""

    def factors(self, g: Array, u: Array, slope: Array, /) -> BranchFactors:
        r"""$a_g = s \odot u / 2$ and $a_u = s \odot g / 2$."""
        return BranchFactors(gate=slope * u / 2, up=g * slope / 2)


RuleName = Literal["gate", "up", "half"]
"""The names of the rules that jaxlin has."""

RULES: dict[RuleName, FreezeRule] = {"gate": FreezeGate(), "up": FreezeUp(), "half": FreezeHalf()}

Rule = RuleName | FreezeRule
"""A freeze rule: a name or an object."""


def checked_rule(rule: Any) -> Rule:
    """Return `rule` if it is the name of a freeze rule or is one.

    Raises:
        JaxlinError: no rule has this name, or the object has no method `factors` or cannot be hashed.
    """
    if isinstance(rule, str):
        names: tuple[RuleName, ...] = (*RULES,)
        name: RuleName = one_of("Rule", rule, names)
        return name
    if isinstance(rule, type) or not isinstance(rule, FreezeRule):
        raise JaxlinError(
            f"Rule: expected one of {', '.join(RULES)}, or an object with a method factors(g, u, slope), as "
            f"jaxlin.nn.FreezeRule has; found {quoted(rule)}."
        )
    try:
        hash(rule)
    except TypeError as error:
        raise JaxlinError(
            f"Rule: expected an object that can be hashed, as a frozen dataclass of numbers; found {quoted(rule)}."
        ) from error
    return rule


def branch_factors(
    rule: Rule, g: Float[Array, "*t f"], u: Float[Array, "*t f"], slope: Float[Array, "*t f"]
) -> BranchFactors:
    """The factors that `rule` gives, in the dtype of `g`.

    Raises:
        JaxlinError: it gives anything else than `BranchFactors` with a factor of the shape of `g`.
    """
    factors = (RULES[rule] if isinstance(rule, str) else rule).factors(g, u, slope)
    arrays = jax.tree.leaves(factors)
    if not isinstance(factors, BranchFactors) or not arrays or any(jnp.shape(a) != g.shape for a in arrays):
        shapes = jax.tree.map(jnp.shape, factors)
        raise JaxlinError(
            f"Rule {quoted(rule)}: expected factors() to give BranchFactors with one array or two of shape {g.shape}; "
            f"found {quoted(shapes)}."
        )
    return jax.tree.map(lambda a: jnp.asarray(a, g.dtype), factors)
