"""What components write to the residual stream, and how they read it, in the features of the stream.

A pass over a prompt keeps them in compact form, from which a few tokens at a time are expanded: all heads of all layers
at all tokens would take as much memory as hundreds of streams.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlin.nn.biases import without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.experts import ExpertConfig
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layer_scan import scan_layers
from jaxlin.nn.shared_attention import SharedAttention
from jaxlin.nn.sites import InnerSite
from jaxlin.nn.stack import layer_of, padded


class StreamFlow(NamedTuple):
    """What one component of each layer writes, and the gradient in the stream through each alone, ``[l, t, d]``."""

    outputs: Any
    reads: Any


class ExpertFlow(NamedTuple):
    """The hidden neurons of experts, ``[l, t, n]``.

    Attributes:
        neurons: their values.
        gradients: the gradient in them.
        routes: the experts of each token; None in a layer that has none.
        biases: what the MLPs add without any neuron, ``[l, t, d]``; None without any biases.
    """

    neurons: Any
    gradients: Any
    routes: Any
    biases: Any


class LayerFlow(NamedTuple):
    """What the components of all layers write and read, stacked over layers; the next axis counts tokens.

    Heads that read the values of an earlier layer read the stream of that layer.

    Attributes:
        factors: the frozen factors that are needed to expand it.
        head_outputs: what enters the output projection, ``[l, t, h, k]``.
        head_reads: the gradient in the projection of each head's own values, likewise.
        attn_biases: what attention adds without its heads, ``[l, t, d]``; None without any biases.
        mlp: of the MLPs.
        per_layer: of what adds per-layer embeddings; None in a model without any.
    """

    factors: Any
    head_outputs: Any
    head_reads: Any
    attn_biases: Any
    mlp: StreamFlow | ExpertFlow
    per_layer: StreamFlow | None


def map_blocks(model: Decoder, function: Callable[..., Any], factors: Any, *rows: Any, biases: bool = False) -> Any:
    """``function(block, ctx, *rows)`` of each block, with its biases or without; `ctx` replays its `factors`."""

    def step(_: None, layer: Any) -> tuple[None, Any]:
        block, own_factors, *own_rows = layer
        return None, function(block, Context(Replay(own_factors)), *own_rows)

    stacks = (model.layers if biases else without_biases(model.layers), factors, *rows)
    with model.at_precision():
        return scan_layers(model.layout, step, None, stacks, 0, model.layout.depth)[1]


def map_value_blocks(model: Decoder, function: Callable[..., Any], factors: Any, *rows: Any) -> Any:
    """`map_blocks` without biases, at the blocks whose values the heads of each layer read."""
    sources = shared_layers(model, without_biases(model.layers), factors)

    def of_values(block: Any, ctx: Context, *own_rows: Any) -> Any:
        if (kind := shared_kind(block)) is not None:
            _, block, own_factors = sources[kind]
            ctx = Context(Replay(own_factors))
        return function(block, ctx, *own_rows)

    return map_blocks(model, of_values, factors, *rows)


def shared_layers(model: Decoder, *stacks: Any) -> dict[str, tuple[Any, ...]]:
    """The layers whose values later ones read, by `shared_kind`: the number of each, and what it has in `stacks`."""
    layers = {own for layer, own in enumerate(model.config.value_layers) if layer != own}
    return {
        layer_of(model.layers, index).self_attn.kind: (index.layer, *(layer_of(stack, index) for stack in stacks))
        for index in map(model.layout.locate, sorted(layers))
    }


def shared_kind(block: Any) -> str | None:
    """The kind of attention whose values a block reads in place of its own; None of one that has its own."""
    attention = getattr(block, block.mixer)
    return attention.kind if isinstance(attention, SharedAttention) else None


def needed_factors(factors: dict[str, Any], experts: bool) -> dict[str, Any]:
    """The frozen factors of a layer that are needed to expand it: no patterns, and those of MLPs only with experts."""
    unneeded = "per_layer", "post_per_layer", *(() if experts else ("mlp.",))
    needed = (name for name in factors if not name.endswith("pattern") and not name.startswith(unneeded))
    return {name: factors[name] for name in needed}


def expand(model: Decoder, flow: LayerFlow) -> tuple[Float[Array, "l a t d"], Float[Array, "l b t d"]]:
    """`stream_writes`, and how the components of each layer read the stream of some tokens.

    Readers are the heads, the parts of the MLP, and what adds per-layer embeddings.
    """

    def of_heads(block: Any, ctx: Context, reads: Any) -> Array:
        return _parts_first(block.read_heads(reads, ctx))

    def of_experts(block: Any, ctx: Context, gradients: Any, route: Any) -> Array:
        masks = _masks(model, gradients, route)
        zeros = jnp.zeros((gradients.shape[0], len(masks), model.config.hidden_size), gradients.dtype)

        def to_neurons(x: Float[Array, "t p d"]) -> Float[Array, "t p n"]:
            reading = Context(ctx.mode)
            block.feed_forward(x, reading)
            return reading.hooks.values[InnerSite.NEURONS]

        return _parts_first(jax.linear_transpose(to_neurons, zeros)(jnp.where(masks, gradients[:, None], 0))[0])

    heads = jnp.nan_to_num(padded(map_value_blocks(model, of_heads, flow.factors, flow.head_reads)))
    mlp, factors = flow.mlp, _factors(model)
    if isinstance(mlp, ExpertFlow):
        parts = map_blocks(model, of_experts, flow.factors, mlp.gradients, mlp.routes)
    else:
        parts = mlp.reads[:, None]
    others = [parts, *_single(None if flow.per_layer is None else flow.per_layer.reads)]
    reads = [heads / factors[value_layers(model)], *(each / factors for each in others)]
    return stream_writes(model, flow), jnp.concatenate(reads, axis=1)


def stream_writes(model: Decoder, flow: LayerFlow) -> Float[Array, "l a t d"]:
    """What the components of each layer write to the stream of some tokens.

    They are the heads, the biases of attention, the parts of the MLP, its biases, and what adds per-layer embeddings.
    All is as it is in the stream after the last block, where what a layer adds may arrive times a factor. The gradients
    of `flow` are not read.
    """

    def of_heads(block: Any, ctx: Context, outputs: Any) -> Array:
        return _parts_first(block.write_heads(outputs, ctx))

    def of_experts(block: Any, ctx: Context, neurons: Any, route: Any) -> Array:
        masks = _masks(model, neurons, route)
        zeros = jnp.zeros((neurons.shape[0], len(masks), model.config.hidden_size), neurons.dtype)
        own: dict[str, Any] = {InnerSite.NEURONS: jnp.where(masks, neurons[:, None], 0)}
        return _parts_first(block.feed_forward(zeros, Context(ctx.mode, Hooks(replacements=own))))

    heads = jnp.nan_to_num(padded(map_blocks(model, of_heads, flow.factors, flow.head_outputs)))
    mlp = flow.mlp
    if isinstance(mlp, ExpertFlow):
        parts, biases = map_blocks(model, of_experts, flow.factors, mlp.neurons, mlp.routes), mlp.biases
    else:
        parts, biases = mlp.outputs[:, None], None
    per_layer = None if flow.per_layer is None else flow.per_layer.outputs
    by_layer = [heads, *_single(flow.attn_biases), parts, *_single(biases), *_single(per_layer)]
    return jnp.concatenate(by_layer, axis=1) * _factors(model)


def _factors(model: Decoder) -> Float[Array, "l 1 1 1"]:
    return stream_factors(model)[:, None, None, None]


def _masks(model: Decoder, neurons: Float[Array, "t n"], route: Any) -> Bool[np.ndarray, "p n"]:
    """Which hidden neurons each part of an MLP has."""
    return neuron_parts(model, neurons.shape[-1], route) == np.arange(slots(model))[:, None]


def stream_factors(model: Decoder) -> Float[Array, " l"]:
    """The factor of what each layer adds, on its way to the stream after the last block.

    It is 1 in a model with several streams, for which `jaxlin.attribution.circuits.stream_paths` has maps.
    """
    factors = model.direct_factors()
    return jnp.ones(model.layout.depth, model.dtype) if factors is None else factors


def value_layers(model: Decoder) -> np.ndarray:
    """For each layer the one whose stream its heads read: its own, unless it reads the values of an earlier one."""
    return np.array(model.config.value_layers or range(model.layout.depth))


def has_experts(model: Decoder) -> bool:
    """Whether some layers are mixtures of experts, each of which is a component."""
    return isinstance(model.config, ExpertConfig)


def has_several_streams(model: Decoder) -> bool:
    """Whether a token has several residual streams, so that what a layer adds has no one factor on its way."""
    return jax.eval_shape(type(model).direct_factors, model) is None


def has_per_layer(model: Decoder) -> bool:
    """Whether each layer adds per-layer embeddings, by a component of their own."""
    return "per_layer_out" in model.sites


def slots(model: Decoder) -> int:
    """The parts of an MLP that a token passes through: its experts, and what every token passes through."""
    return model.config.num_experts_per_tok + 1 if has_experts(model) else 1


def neuron_parts(model: Decoder, neurons: int, route: Any) -> Int[np.ndarray, " n"]:
    """The part that each hidden neuron of an MLP belongs to: the last one in a layer without experts."""
    last = slots(model) - 1
    if route is None:
        return np.full(neurons, last)
    return np.minimum(np.arange(neurons) // model.config.moe_intermediate_size, last)


def _single(values: Any) -> list[Any]:
    """``[l, t, d]`` as the values of one component a layer; none if there are none."""
    return [] if values is None else [values[:, None]]


def _parts_first(values: Float[Array, "t p d"]) -> Float[Array, "p t d"]:
    return jnp.swapaxes(values, 0, 1)
