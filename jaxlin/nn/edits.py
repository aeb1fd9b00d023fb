r"""Edits: functions of the value at a site, and the layers, positions and heads that they apply to.

`Edit.site` says at which site, `Edit.where` at which positions, `Edit.units` in which heads, and `Edit.strength` how
strongly; at strength 0 it changes nothing. An edit is a pytree, so a compiled step takes it as an argument and serves
all strengths and vectors. `jaxlin.activations` has several kinds of edits, and users can write more: see `Edit`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.annotations import is_integer
from jaxlin.common.arrays import Leaf
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.prompt import Embeddings

E = TypeVar("E", bound="Edit")
Where = Literal["all", "new"] | tuple[int, ...]
"""The positions that an edit applies to.

``"all"``: every position. ``"new"``: the positions that predict the continuation, which are the last of the prompt and
all generated ones. A tuple: these positions, counted from the first token of the text. Those of a pattern are its
queries.
"""


class SteeringError(JaxlinError):
    """An edit that is invalid, or that does not fit the model."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Edit:
    """A function of the value at a site. This is the base class, and a subclass says which function.

    A subclass is registered as a pytree, as this class is, and has the arrays it needs as fields::

        @jax.tree_util.register_dataclass
        @dataclass(frozen=True, kw_only=True, repr=False)
        class Shrink(Edit):
            def __call__(self, h, drive):
                return (1 - self.strength) * h

    `jaxlin.activations.apply` makes an edit of a function without a class.

    Attributes:
        site: the site, as `jaxlin.record` names it: ``"embed"``, ``"final"``, ``("heads", 10)``, or ``"heads"`` in all
            layers.
        strength: a number; each kind of edit says what it multiplies.
        where: the positions that are edited.
        units: which heads of ``"q"``, ``"k"``, ``"v"``, ``"heads"`` or ``"pattern"`` are edited, or which features of
            another site, as neurons, ``[n]``; all if None.
    """

    site: Any = field(metadata={"static": True})
    strength: Leaf = 1.0
    where: Where | str = field(default="all", metadata={"static": True})
    units: Leaf = None

    def at_strength(self: E, strength: Leaf) -> E:
        """The same edit at another strength, which may be traced. A step compiled for this one serves it too."""
        return replace(self, strength=strength)

    def __call__(self, h: Float[Array, "*n"], drive: Float[Array, "t e"]) -> Float[Array, "*n"]:
        """The edited value.

        Args:
            h: the value at the site, at some positions.
            drive: the result of `drive` at these positions.
        """
        raise TypeError(f"{type(self).__name__} defines no edit")

    def at_positions(self, h: Any, drive: Float[Array, "t e"], positions: Int[Array, " t"]) -> Any:
        """The edited value at these `positions`, if the edit depends on them: by default that of a call."""
        return self(h, drive)

    drive_features = 0
    """The number of features that `drive` returns for each position."""

    def drive(
        self, x: Float[Embeddings, "t d"], positions: Int[Array, " t"], before: Float[Array, " e"]
    ) -> Float[Array, "t e"]:
        """Values that the edit computes from the input embeddings; none in this base class.

        Args:
            x: the input embeddings of some tokens that follow each other.
            positions: their positions.
            before: the result at the position before the first of them; zeros at the start of a text.
        """
        return jnp.zeros((x.shape[0], 0), x.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """The arrays of the edit, by name, whose last axis has the features of the residual stream."""
        return {}

    def __repr__(self) -> str:
        arrays = "".join(f", {name} of shape {jnp.shape(array)}" for name, array in self.vectors().items())
        units = "" if self.units is None else f", units={self.units}"
        return (
            f"{type(self).__name__}(site={self.site!r}, strength={self.strength}, where={self.where!r}{units}{arrays})"
        )


def check_where(where: Any) -> Where:
    """`where` as `Edit.where` has it: one position, or a sequence of them, becomes a tuple.

    Raises:
        SteeringError: neither "all", "new" nor positions.
    """
    if isinstance(where, str) and where in ("all", "new"):
        return where
    is_sequence = isinstance(where, Sequence) and not isinstance(where, str)
    positions: tuple[Any, ...] = tuple(where) if is_sequence else (where,)
    if not positions or not all(is_integer(each) and each >= 0 for each in positions):
        raise SteeringError(
            f'Edit, where: expected "all", "new" or positions counted from the first token, as (0, 3); '
            f"found {quoted(where)}."
        )
    return tuple(map(int, positions))


def check_units(units: Any) -> Leaf:
    """`units` as `Edit.units` has it: one index, or a sequence of them, becomes an array.

    Raises:
        SteeringError: neither None nor indices of 0 or more.
    """
    if units is None or isinstance(units, jax.Array):
        return units
    is_sequence = isinstance(units, Sequence) and not isinstance(units, str)
    indices: tuple[Any, ...] = tuple(units) if is_sequence else (units,)
    if not indices or not all(is_integer(each) and each >= 0 for each in indices):
        raise SteeringError(
            f"Edit, units: expected heads or features, counted from 0, as (0, 3); found {quoted(units)}."
        )
    return jnp.asarray(indices, jnp.int32)
