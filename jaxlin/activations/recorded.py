"""`Activations`: the values at the sites of a model, as `record` returns them."""

from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any, get_args

import jax
import numpy as np

from jaxlin import plots
from jaxlin.common.arrays import Leaf
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.site_names import ENDS, SITES, parse_site
from jaxlin.nn.sites import Kind, SiteError
from jaxlin.nn.stack import is_stack, layer_of
from jaxlin.results import Result, html
from jaxlin.results.tables import columns, filled, stacked
from jaxlin.results.values import plain

AXES_OF = {
    **dict.fromkeys(("q", "k", "v", "heads"), ("position", "head", "feature")),
    **dict.fromkeys(("embed", "neurons", "final", *get_args(Kind)), ("position", "feature")),
    "pattern": ("head", "position", "key"),
}
"""The axes of the values of one layer; those of other sites are told by their number."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Activations(Result):
    """The values at sites of a model, as `record` returns them: ``activations["heads"]``, ``activations["heads", 10]``.

    It is a pytree: `jax.vmap` of `record` puts a batch axis first in every array. A table has the norm of each vector,
    and of each pattern the largest weight and its key. In a file, stacks of unlike layers are single layers.

    Attributes:
        stacks: the values of all layers at each site, by its name, ``[layers, ...]``; those of ``"embed"`` and
            ``"final"`` have no layers. Where layers are unlike it is a `jaxlin.nn.stack.Stack`, which has no number
            where a layer has none: an index by layer gives the array of each.
        single: the values of single layers, by the name of the site and the layer.
        depth: the number of layers of the model.
    """

    stacks: dict[str, Leaf]
    single: dict[str, dict[int, Leaf]]
    depth: int = field(metadata={"static": True})

    @property
    def sites(self) -> tuple[Any, ...]:
        """The sites that were recorded: names, and pairs of a name and a layer."""
        pairs = ((name, layer) for name, layers in self.single.items() for layer in layers)
        return (*sorted(self.stacks, key=SITES.index), *pairs)

    def __getitem__(self, site: Any) -> Any:
        """The values at a site: of all layers for a name, of one layer for a pair of a name and a layer.

        Raises:
            SiteError: the site was not recorded, or its layer does not have it.
        """
        name, layer = parse_site(site, self.depth)
        if layer is None and name in self.stacks:
            return self.stacks[name]
        single = self.single.get(name, {})
        if layer is not None and (layer in single or name in self.stacks):
            value = single[layer] if layer in single else layer_of(self.stacks[name], layer)
            if not jax.tree.leaves(value):
                raise SiteError(f"Site {quoted(site)}: layer {layer} has no {name}.")
            return value
        raise SiteError(f"Site {quoted(site)}: expected a site that was recorded, {quoted(self.sites)}.")

    def __contains__(self, site: Any) -> bool:
        name, layer = parse_site(site, self.depth)
        return name in self.stacks or (layer is not None and layer in self.single.get(name, {}))

    def __repr__(self) -> str:
        shapes = {}
        for site in self.sites:
            value = self[site]
            shapes[site] = "by layer" if is_stack(value) else jax.tree.map(np.shape, value)
        return f"Activations({shapes})"

    def tables(self) -> list[dict[str, Any]]:
        """One table with a row for each site, layer, head and position.

        Its `value` is the norm of the vector there; for a pattern it is the largest weight, which is that of `key`.

        Raises:
            JaxlinError: a batch of prompts.
        """
        tables = []
        for site, layer, array in self._arrays():
            by_shape = ("position", "head", "feature") if array.ndim == 3 else ("position", "feature")
            axes = AXES_OF.get(site, by_shape)
            if array.ndim != len(axes):
                raise JaxlinError(
                    "Activations: expected those of one prompt; found a batch, as from jax.vmap. Take one out of it: "
                    "jax.tree.map(lambda a: a[i], activations)."
                )
            key = {}
            if site == "pattern":
                key, values = {"key": array.argmax(-1).ravel()}, array.max(-1)
            else:
                values = np.linalg.norm(array, axis=-1)
            table = columns(self, axes[:-1], {"value": values})
            tables.append({**filled({"site": site, "layer": layer}, table), **key})
        return [stacked(tables)]

    def values(self) -> dict[str, Any]:
        """Plain values, with the single layers of stacks of unlike ones."""
        return {each.name: plain(getattr(self.of_arrays(), each.name)) for each in fields(self)}

    def of_arrays(self) -> "Activations":
        """These activations with single layers in the place of stacks of unlike ones, and plain tuples as routes."""

        def bare(value: Any) -> Any:
            return tuple(value) if isinstance(value, tuple) else value

        stacks = {name: bare(value) for name, value in self.stacks.items() if not _is_unlike(value)}
        single = {name: {layer: bare(value) for layer, value in of.items()} for name, of in self.single.items()}
        for name, value in self.stacks.items():
            if _is_unlike(value):
                layers = ((layer, layer_of(value, layer)) for layer in range(self.depth))
                single[name] = {layer: bare(each) for layer, each in layers if jax.tree.leaves(each)}
        return self.replaced(stacks=stacks, single=single)

    def save(self, path: str | PathLike[str]) -> None:
        """Write them to a file, see `jaxlin.results.Result.save`."""
        Result.save(self.of_arrays(), path)

    def plot(self, ax: Any = None, *, site: Any = None, head: int | None = None) -> Any:
        """Draw a heat map of one site, and return the axes.

        Args:
            ax: matplotlib's axes, by default those of a new figure.
            site: a name, for the norms of the vectors of all layers; or a pair of a name and a layer. A pattern is
                drawn query by key: that of the last layer for the name alone. By default the first that was recorded.
            head: the head of a pattern, by default the mean of all; of other values with heads their norm.

        Raises:
            SiteError: the site was not recorded.
            JaxlinError: a batch of prompts, traced arrays, or no matplotlib.
        """
        self._check_values("Plot")
        self.tables()  # refuses a batch
        axes = plots.axes_or_new(ax)
        self._draw(axes, *parse_site(self.sites[0] if site is None else site, self.depth), head)
        return axes

    def _draw(self, ax: Any, name: str = "", layer: int | None = None, head: int | None = None) -> None:
        """A pattern query by key, or norms layer by token."""
        by_layer = {at: array for site, at, array in self._arrays() if site == name and layer in (None, at)}
        if not by_layer:
            raise SiteError(f"Plot: expected a site of vectors that was recorded; found {quoted((name, layer))}.")
        if name == "pattern":
            last = max(at for at in by_layer if at is not None)
            weights = by_layer[last].mean(0) if head is None else by_layer[last][head]
            names = self._labels("position", len(weights))
            plots.heat_map(ax, weights, names, names, signed=False)
            of = "mean over heads" if head is None else f"head {head}"
            plots.write(ax, title=f"Attention pattern of layer {last}, {of}", xlabel="key", ylabel="query")
            return
        norms = np.stack([np.linalg.norm(array.reshape(len(array), -1), axis=-1) for array in by_layer.values()])
        rows = [name if at is None else str(at) for at in by_layer]
        plots.heat_map(ax, norms, rows, self._labels("position", norms.shape[1]), signed=False)
        plots.write(ax, title=f"Norms of {name}", ylabel="layer")

    def _repr_html_(self) -> str:
        """The shape of each site, and the norms of the stream."""
        shapes = {"site": [], "shape": []}
        for site in self.sites:
            value = self[site]
            shapes["site"].append(str(site))
            shapes["shape"].append("by layer" if is_stack(value) else str(jax.tree.map(np.shape, value)))
        return html.heading(self) + html.rows(self, shapes)

    def _arrays(self) -> list[tuple[str, int | None, np.ndarray]]:
        """The array of each site and layer, but for routes: the name, the layer, and the array."""
        values = []
        for name, value in self.stacks.items():
            layers = [None] if name in ENDS else range(self.depth)
            values += [(name, at, value if at is None else layer_of(value, at)) for at in layers]
        values += [(name, at, value) for name, of in self.single.items() for at, value in of.items()]
        arrays = [(name, at, value) for name, at, value in values if name != "route" and jax.tree.leaves(value)]
        return [(name, at, np.asarray(value)) for name, at, value in arrays]


def _is_unlike(value: Any) -> bool:
    """Whether a stack is of unlike layers."""
    return any(map(is_stack, jax.tree.leaves(value, is_leaf=is_stack)))
