"""The parts of a mixture of experts: which expert each hidden neuron belongs to, and the experts of all layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.attribution.result import Experts
from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.sites import InnerSite
from jaxlin.nn.stack import Layout, layer_of


def part_of_neurons(model: Decoder, neurons: Float[Array, "*t n"], route: Any) -> Int[np.ndarray, " n"]:
    """For each neuron the part of its MLP that it belongs to.

    Those of the `k` experts of a token stand side by side, part 0 to k - 1. All that follow are part k, those of the
    shared expert, through which every token passes. Where there is no `route`, all neurons are of one part.
    """
    index = np.arange(neurons.shape[-1])
    return 0 * index if route is None else np.minimum(index // model.config.moe_intermediate_size, chosen(route))


def chosen(route: Any) -> int:
    """The number of experts of a token."""
    return route.experts.shape[-1]


def sum_parts(model: Decoder, contributions: Float[Array, "*t n"], route: Any) -> Float[Array, "*t p"]:
    """The sum of the contributions of the neurons of each part, see `part_of_neurons`."""
    part = part_of_neurons(model, contributions, route)
    zeros = jnp.zeros((*contributions.shape[:-1], part.max() + 1), contributions.dtype)
    return zeros.at[..., part].add(contributions)


def outputs_without_neurons(model: Decoder, frozen: FrozenFactors, neurons: Any) -> Float[Array, "l t d"]:
    """What the MLP of each layer adds where all its neurons are zero: its biases, through any norm."""

    def make_context(row: Any) -> Context:
        factors, neurons = row
        return Context(Replay(factors), Hooks(replacements={InnerSite.NEURONS: neurons}))

    stream = jnp.zeros((frozen.tokens, model.config.hidden_size), model.dtype)
    zeros = jax.tree.map(jnp.zeros_like, neurons)
    return model.scan(stream, make_context, (frozen.layers, zeros), collect=lambda ctx: ctx.hooks.values["mlp_out"])[1]


def experts_of(layout: Layout, routes: Any, parts: Any, bias: Float[Array, "n *t"]) -> Experts | None:
    """The experts of the layers that have a route; None if no layer has one.

    Args:
        layout: of the layers of the model.
        routes: the routes of the layers, ``[l, *t, k]``; None in place of those of a layer that has none.
        parts: the contributions of the parts of each MLP, ``[l, *t, p]``.
        bias: that of its biases.
    """
    layers = [layer for layer in range(layout.depth) if layer_of(routes, layer) is not None]
    if not layers:
        return None
    route, parts = (_stacked(layout, tree, layers) for tree in (routes, parts))
    k, index = chosen(route), jnp.asarray(layers)
    shared = parts[..., k] if parts.shape[-1] > k else None
    return Experts(index, route.experts, route.weights, parts[..., :k], shared, bias[index])


def _stacked(layout: Layout, tree: Any, layers: list[int]) -> Any:
    """The values of some layers, which are alike."""
    if layout.is_uniform:
        return tree
    return jax.tree.map(lambda *rows: jnp.stack(rows), *(layer_of(tree, layer) for layer in layers))
