"""What one component reads of the stream, through it alone, in the frozen model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.circuits.expansion import has_experts, neuron_parts, slots, stream_factors
from jaxlin.attribution.circuits.stream_paths import taken
from jaxlin.linearize.backward import transpose
from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.block_input import BlockInput
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import InnerSite
from jaxlin.nn.stack import LayerIndex, layer_of


class HeadLayers(NamedTuple):
    """Where a head is: its layer, and the earlier one whose values it reads; None if it reads those of its own."""

    own: LayerIndex
    values: LayerIndex | None


@jax.jit
def at_tokens(write: Float[Array, "t d"], gradient: Float[Array, "t d"]) -> Float[Array, " t"]:
    """What a gradient takes of a `write` at each token."""
    return jnp.einsum("td,td->t", write, gradient, precision=HIGHEST)


@jax.jit
def head_by_position(
    model: Decoder,
    frozen: FrozenFactors,
    layers: HeadLayers,
    head: Any,
    gradient: Float[Array, "t d"],
    write: Float[Array, "t d"],
    places: tuple[Any, Any],
) -> Float[Array, "t s"]:
    """What a head takes of a `write` at each position, for each of the positions that it writes at.

    The write and the head are at `places`, as in `jaxlin.attribution.circuits.stream_paths`.
    """
    positions = jnp.arange(write.shape[0])

    def of_query(query: Array) -> Float[Array, " s"]:
        alone = jnp.where((positions == query)[:, None], gradient, 0)
        read = read_head(model, frozen, layers, head, alone)
        return taken(model, frozen, write[None], jnp.array([places[0]]), read, places[1])[0]

    return jax.lax.map(of_query, positions)


@jax.jit
def read_head(
    model: Decoder, frozen: FrozenFactors, layers: HeadLayers, head: Any, gradient: Float[Array, "t d"]
) -> Float[Array, "t d"]:
    """Through one head. The gradients, as in the next two functions, are in the stream after the last block."""

    def alone(z: Float[Array, "t h k"]) -> Float[Array, "t h k"]:
        return jnp.where((jnp.arange(z.shape[1]) == head)[None, :, None], z, 0)

    def read(bare: Decoder, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        entering, reading = BlockInput(x), {str(InnerSite.ATTN_IN): x}
        if layers.values is not None:
            ctx = Context(Replay(layer_of(frozen.layers, layers.values)), Hooks(replacements=reading))
            entering = bare.block(layers.values, entering, ctx)
        hooks = Hooks(replacements=reading, edits={InnerSite.GATED_HEADS: alone})
        ctx = Context(Replay(layer_of(frozen.layers, layers.own)), hooks)
        bare.block(layers.own, entering, ctx)
        return ctx.hooks.values["attn_out"]

    read_by = transpose(read, model, gradient)(gradient)[0]
    if layers.values is None:  # what is added and what is read have the same factor up to the last block
        return read_by
    factors = stream_factors(model)
    return read_by * factors[layers.own.layer] / factors[layers.values.layer]


@jax.jit
def read_part(
    model: Decoder, frozen: FrozenFactors, routes: Any, index: LayerIndex, expert: Any, gradient: Float[Array, "t d"]
) -> Float[Array, "t d"]:
    """Through one expert, or through the rest of an MLP, which has the number after the last expert."""
    route = layer_of(routes, index) if has_experts(model) else None

    def alone(neurons: Float[Array, "t n"]) -> Float[Array, "t n"]:
        rest = jnp.full((neurons.shape[0], 1), model.config.num_experts)
        routed = jnp.full((neurons.shape[0], slots(model) - 1), -1) if route is None else route.experts
        numbers = jnp.concatenate([routed, rest], axis=1)[:, neuron_parts(model, neurons.shape[-1], route)]
        return jnp.where(numbers == expert, neurons, 0)

    def read(bare: Decoder, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        edits: dict[str, Any] = {InnerSite.NEURONS: alone} if has_experts(model) else {}
        hooks = Hooks(replacements={InnerSite.MLP_IN: x}, edits=edits)
        ctx = Context(Replay(layer_of(frozen.layers, index)), hooks)
        bare.block(index, x, ctx)
        return ctx.hooks.values["mlp_out"]

    return transpose(read, model, gradient)(gradient)[0]


@jax.jit
def read_per_layer(
    model: Decoder, frozen: FrozenFactors, index: LayerIndex, gradient: Float[Array, "t d"]
) -> Float[Array, "t d"]:
    """Through what adds the per-layer embeddings of a layer."""

    def read(bare: Decoder, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        ctx = Context(Replay(layer_of(frozen.layers, index)), Hooks(replacements={InnerSite.PER_LAYER_IN: x}))
        bare.block(index, x, ctx)
        return ctx.hooks.values["per_layer_out"]

    return transpose(read, model, gradient)(gradient)[0]
