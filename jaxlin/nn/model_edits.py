r"""Edits within a model: where in its layers they are applied, and what the frozen model makes of them.

A model may carry edits (`ModelEdits`), and is then a model like any other. Its local linear map has them too: with the
value $h_0$ at the site, the frozen model goes on with $e(h_0) + \mathrm{D}e(h_0)\,(h - h_0)$, the edit's own
derivative, which is the edit itself if that is affine. The part $e(h_0) - \mathrm{D}e(h_0)\,h_0$ belongs to $b$.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.nn.edits import Edit
from jaxlin.nn.patterns import Dense, Pattern
from jaxlin.nn.site_names import parse_site
from jaxlin.nn.sites import InnerSite
from jaxlin.nn.stack import Layout, Stack

ValueEdit = Callable[[Any], Any]
"""An edit of a value at a site, restricted to what it applies to."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerRow:
    """The number of a layer, in a row of a scan.

    Attributes:
        number: the number.
        layers: the layers that the row can be, those that share the body of a scan.
    """

    number: Leaf
    layers: range = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ModelEdits:
    """The edits that a model carries, see `jaxlin.activations.with_edits`.

    Attributes:
        edits: the edits; those at one site are applied in this order.
        bias: ones, ``[layers]``: the factor of what the edits of a layer add in the frozen model. As every additive
            bias it is None in the linear part of that model (`jaxlin.nn.biases`).
    """

    edits: tuple[Edit, ...]
    bias: Leaf

    def at(self, row: LayerRow, positions: Int[Array, " t"], depth: int) -> dict[str, ValueEdit]:
        """The edits of one layer, by site."""
        drives = tuple(jnp.zeros((positions.shape[0], 0)) for _ in self.edits)
        return edits_of_layer(self.edits, drives, row, positions, 0, depth)


def layer_rows(layout: Layout) -> Any:
    """The numbers of all layers, stacked."""
    numbers = jnp.arange(layout.depth)
    if layout.is_uniform:
        return LayerRow(numbers, range(layout.depth))
    places = [[segment.layers(place) for place in range(segment.period)] for segment in layout.segments]
    rows = (tuple(LayerRow(numbers[at.start : at.stop : at.step], at) for at in segment) for segment in places)
    return Stack(tuple(rows), layout)


def hook_site(site: Any, depth: int) -> tuple[str, int | None]:
    """The hook that an edit at `site` is applied in, and its layer, None for all.

    The stream before a block is edited after the block before it, because no block follows the last.

    Raises:
        SiteError: no such site or layer.
    """
    name, layer = parse_site(site, depth)
    if name == "embed":
        return "resid_pre", 0
    return ("resid_post", layer - 1) if name == "resid_pre" and layer else (name, layer)


def edits_of_layer(
    edits: Sequence[Edit],
    drives: Sequence[Float[Array, "t _"]],
    row: LayerRow,
    positions: Int[Array, " t"],
    first_new: Int[Array, ""] | int,
    depth: int,
) -> dict[str, ValueEdit]:
    """The edits of one layer, by site: a function of the value there, which applies all of them in their order.

    Args:
        edits: the edits.
        drives: the drive of each.
        row: the layer.
        positions: the positions of the tokens at hand; those of a value are the last of them.
        first_new: the first position that an edit with ``where="new"`` applies to.
        depth: the number of layers.
    """
    by_site: dict[str, list[tuple[int | None, Edit, Array]]] = {}
    for edit, drive in zip(edits, drives, strict=True):
        name, layer = hook_site(edit.site, depth)
        if name != "final" and (layer is None or layer in row.layers):
            by_site.setdefault(name, []).append((layer, edit, drive))

    def function(site: str, placed: list[tuple[int | None, Edit, Array]]) -> ValueEdit:
        def apply(value: Any) -> Any:
            for layer, edit, drive in placed:

                def edited(value: Any, edit: Edit = edit, drive: Array = drive) -> Any:
                    return edited_value(edit, site, value, drive, positions, first_new)

                # Where only one layer shares this body, or all are edited, there is nothing to decide.
                is_sure = layer is None or len(row.layers) == 1
                value = edited(value) if is_sure else jax.lax.cond(row.number == layer, edited, lambda v: v, value)
            return value

        def of_array(value: Any) -> Any:
            return Dense(apply(value.array())) if isinstance(value, Pattern) else apply(value)

        return of_array

    return {site: function(site, placed) for site, placed in by_site.items()}


def edited_value(
    edit: Edit,
    site: str,
    value: Any,
    drive: Float[Array, "t e"],
    positions: Int[Array, " t"],
    first_new: Int[Array, ""] | int,
) -> Any:
    """A value at `site` after `edit`, at the positions and in the units that it applies to."""
    tokens = jax.tree.leaves(value)[0].shape[1 if site == InnerSite.PATTERN else 0]
    if tokens != positions.shape[0]:
        positions, drive = positions[-tokens:], drive[-tokens:]
    result = edit.at_positions(value, drive, positions)

    def chosen(before: Array, after: Array) -> Array:
        mask = _mask(edit, site, before, positions, first_new)
        after = jnp.broadcast_to(after, before.shape).astype(before.dtype)
        return after if mask is None else jnp.where(mask, after, before)

    return jax.tree.map(chosen, value, result)


def _mask(
    edit: Edit, site: str, value: Array, positions: Int[Array, " t"], first_new: Int[Array, ""] | int
) -> Bool[Array, "..."] | None:
    """Which entries of a value an edit applies to; None for all."""
    token_axis, unit_axis = (1, 0) if site == InnerSite.PATTERN else (0, 1)
    mask = None

    def along(flags: Array, axis: int) -> Array:
        return flags.reshape([-1 if index == axis else 1 for index in range(value.ndim)])

    if edit.where != "all":
        applies = positions >= first_new if edit.where == "new" else jnp.isin(positions, jnp.asarray(edit.where))
        mask = along(applies, token_axis)
    if edit.units is not None:
        units = along(jnp.isin(jnp.arange(value.shape[unit_axis]), jnp.asarray(edit.units)), unit_axis)
        mask = units if mask is None else mask & units
    return mask
