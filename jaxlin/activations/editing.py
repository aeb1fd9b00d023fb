"""Edited models: `with_edits` gives a model that carries edits, after a check that they fit it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxlin.common.arguments import checked
from jaxlin.common.printable import quoted
from jaxlin.nn.biases import has_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.edits import Edit, SteeringError, check_where
from jaxlin.nn.model_edits import ModelEdits
from jaxlin.nn.patterns import Pattern
from jaxlin.nn.prompt import Prompt
from jaxlin.nn.site_names import ENDS, parse_site
from jaxlin.nn.sites import InnerSite, SiteError
from jaxlin.nn.stack import layer_of


@checked
def with_edits(model: Decoder, edits: Sequence[Any]) -> Decoder:
    """A copy of `model` that carries `edits`: a model like any other, which shares the weights of the first.

    Attribution, maps, lenses, causal checks, generation and the forward pass all are those of the edited model. Its
    frozen factors have the derivative of each edit (`jaxlin.nn.model_edits`), so that a map stays exact.

    Args:
        model: any decoder; the edits that it carries already come first.
        edits: the edits; those at one site are applied in this order.

    Raises:
        SiteError: a site that the model does not have.
        SteeringError: an object that is not an edit, one that does not fit the model, an edit of the site "final", one
            at new positions only, or by the map of a phrase: these belong to `jaxlin.generate` and
            `jaxlin.steering.edited`.
    """
    checked = check_edits(model, edits)
    for edit in checked:
        if edit.where == "new" or edit.drive_features or edit.site == "final" or has_biases(edit):
            raise SteeringError(
                "With edits: expected edits before the final norm at all or at given positions, which need no more "
                f"than the value there; found {quoted(edit)}. Pass it to jaxlin.generate or jaxlin.steering.edited."
            )
    before = () if model.edits is None else model.edits.edits
    ones = jnp.ones(model.config.num_hidden_layers, model.dtype)
    return model.copy_with(edits=ModelEdits((*before, *checked), ones))


@checked
def check_edits(model: Decoder, edits: Sequence[Any]) -> tuple[Edit, ...]:
    """`edits` as a tuple, each of which fits `model`.

    Raises:
        SiteError: a site that the model does not have.
        SteeringError: an object that is not an edit, an edit for a residual stream of another width, or of heads or
            features that are not there.
    """
    if isinstance(edits, Edit):
        raise SteeringError("Edits: expected a list of them; found a single edit. Put it in a list.")
    for edit in edits:
        if not isinstance(edit, Edit):
            raise SteeringError(
                "Edit: expected an edit, as those of jaxlin.steering, add, apply or ablate among them, give; "
                f"found {quoted(edit)}."
            )
        check_where(edit.where)
        shapes = _shapes_at(model, edit.site)
        for name, array in edit.vectors().items():
            if any(array.shape[-1] != shape[-1] for shape in shapes):
                raise SteeringError(
                    f"{type(edit).__name__}, {name}: expected {shapes[0][-1]} features, those of site "
                    f"{quoted(edit.site)} of this model; found {array.shape[-1]}."
                )
        if edit.units is not None and not isinstance(edit.units, jax.core.Tracer):
            largest, fewest = int(np.max(np.asarray(edit.units))), min(shape[0] for shape in shapes)
            if largest >= fewest:
                raise SteeringError(
                    f"Edit, units: expected heads or features below {fewest}, those of site {quoted(edit.site)}; "
                    f"found {largest}."
                )
    return tuple(edits)


def _shapes_at(model: Decoder, site: Any) -> list[tuple[int, ...]]:
    """The shape of the value at one position of a site, in each of its layers.

    Raises:
        SiteError: the model has no such site.
    """
    depth = model.config.num_hidden_layers
    name, layer = parse_site(site, depth)
    if name in ENDS:
        return [(model.config.hidden_size,)]
    shapes = site_shapes(model)
    if name not in shapes:
        raise SiteError(f"Site {quoted(site)}: expected a site of this model, {', '.join(shapes)}.")
    values, layers = model.config.value_layers, range(depth) if layer is None else [layer]
    if name in (InnerSite.KEYS, InnerSite.VALUES) and values and any(values[each] != each for each in layers):
        reader = next(each for each in layers if values[each] != each)
        raise SiteError(
            f"Site {quoted(site)}: layer {reader} reads the keys and values of layer {values[reader]}. Edit them there."
        )
    if absent := [each for each in layers if each not in shapes[name]]:
        raise SiteError(f"Site {quoted(site)}: layer {absent[0]} has no {name}.")
    return [shapes[name][each] for each in layers]


def site_shapes(model: Decoder) -> dict[str, dict[int, tuple[int, ...]]]:
    """The shape of the value at one position, of each layer, at each site that it has."""
    return _site_shapes(type(model), model.config, model.layout, jax.tree.structure(model), _Shapes(model))


class _Shapes:
    """The shapes of a model, which its class and config determine: equal to any other in a cache."""

    def __init__(self, model: Decoder) -> None:
        self.model = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shapes)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=64)
def _site_shapes(
    kind: type, config: Any, layout: Any, structure: Any, shapes: _Shapes
) -> dict[str, dict[int, tuple[int, ...]]]:
    x: Any = jax.ShapeDtypeStruct((1, config.hidden_size), jnp.dtype(shapes.model.dtype))
    x = Prompt(x, jax.ShapeDtypeStruct((1,), np.int32)) if shapes.model.reads_ids else x

    def values(model: Decoder, x: Any) -> Any:
        def collect(ctx: Context) -> dict[str, Any]:
            return {
                name: value.array()[:, 0] if isinstance(value, Pattern) else jax.tree.map(lambda a: a[0], value)
                for name, value in ctx.hooks.values.items()
            }

        return model.scan(x, lambda _: Context(), collect=collect)[1]

    recorded = jax.eval_shape(values, shapes.model, x)
    result: dict[str, dict[int, tuple[int, ...]]] = {}
    for layer in range(config.num_hidden_layers):
        for name, value in jax.eval_shape(lambda tree, layer=layer: layer_of(tree, layer), recorded).items():
            result.setdefault(name, {})[layer] = jax.tree.leaves(value)[0].shape
    return result
