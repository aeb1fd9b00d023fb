r"""Edits: functions of the value at a site, and the positions that they apply to.

An edit is a function of the value at a site of the residual stream, applied at each position by itself. `Edit.site`
says at which site, `Edit.where` at which positions, and `Edit.strength` how strongly; at strength 0 it changes nothing.
It is a pytree, so a compiled step takes it as an argument and serves all strengths and vectors. The package has five
kinds of edits (`jaxlin.steering`), and users can write more: see `Edit`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import Site, is_integer, place

E = TypeVar("E", bound="Edit")
Where = Literal["all", "new"] | tuple[int, ...]
"""The positions that an edit applies to.

``"all"``: every position. ``"new"``: the positions that predict the continuation, which are the last of the prompt and
all generated ones. A tuple: these positions, counted from the first token of the text.
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

    Attributes:
        site: the site on the residual stream.
        strength: a number; each kind of edit says what it multiplies.
        where: the positions that are edited.
    """

    site: Site = field(metadata={"static": True})
    strength: Leaf = 1.0
    where: Where | str = field(default="all", metadata={"static": True})

    def at_strength(self: E, strength: float) -> E:
        """The same edit at another strength. A step that was compiled for this one serves it too."""
        return replace(self, strength=strength)

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """The edited value.

        Args:
            h: the value at the site, at some positions.
            drive: the result of `drive` at these positions.
        """
        raise TypeError(f"{type(self).__name__} defines no edit")

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
        return f"{type(self).__name__}(site={self.site!r}, strength={self.strength}, where={self.where!r}{arrays})"


def check_edits(model: Decoder, edits: Sequence[Any]) -> tuple[Edit, ...]:
    """`edits` as a tuple, each of which fits `model`.

    Raises:
        SiteError: a site that the model does not have.
        SteeringError: an object that is not an edit, or an edit for a residual stream of another width.
    """
    width = model.config.hidden_size
    if isinstance(edits, Edit):
        raise SteeringError("Edits: expected a list of them; found a single edit. Put it in a list.")
    for edit in edits:
        if not isinstance(edit, Edit):
            raise SteeringError(
                f"Edit: expected an edit, as jaxlin.steering's add, ablate, swap, paper_equation or paper_code give; "
                f"found {quoted(edit)}."
            )
        check_where(edit.where)
        for name, array in edit.vectors().items():
            if array.shape[-1] != width:
                raise SteeringError(
                    f"{type(edit).__name__}, {name}: expected {width} features, those of this model's residual stream; "
                    f"found {array.shape[-1]}."
                )
        place(edit.site, model.config.num_hidden_layers, model.sites)
    return tuple(edits)


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
