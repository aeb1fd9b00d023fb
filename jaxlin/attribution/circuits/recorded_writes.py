"""What the components of all layers write in one forward pass, without any gradients."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.circuits.expansion import (
    ExpertFlow,
    LayerFlow,
    StreamFlow,
    has_per_layer,
    map_blocks,
    needed_factors,
)
from jaxlin.attribution.expert_parts import outputs_without_neurons
from jaxlin.linearize.frozen import Recording
from jaxlin.nn.biases import has_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sites import InnerSite


def written_sites(model: Decoder, *, experts: bool) -> tuple[str, ...]:
    """The kinds of sites that `recorded_writes` reads; with or without `experts`, as there."""
    of_experts = (InnerSite.NEURONS, InnerSite.ROUTE) if experts else ()
    return (InnerSite.GATED_HEADS, "mlp_out", *["per_layer_out"] * has_per_layer(model), *of_experts)


def recorded_writes(model: Decoder, recording: Recording, *, experts: bool) -> LayerFlow:
    """What the components write, in compact form; each expert is one of them if `experts`, otherwise a whole MLP is."""
    sites, frozen = recording.sites, recording.frozen
    heads, neurons = sites[InnerSite.GATED_HEADS], sites.get(InnerSite.NEURONS)
    factors = model.layout.map(lambda own: needed_factors(own, experts), frozen.layers)
    attn_biases, mlp_biases = None, None
    if has_biases(model):

        def at_zero(block: Any, ctx: Context, z: Float[Array, "t h k"]) -> Float[Array, "t d"]:
            return block.write_attention(jnp.zeros_like(z), ctx)

        attn_biases = map_blocks(model, at_zero, factors, heads, biases=True)
        mlp_biases = outputs_without_neurons(model, frozen, neurons) if experts else None
    if experts:
        mlp: Any = ExpertFlow(neurons, None, sites[InnerSite.ROUTE], mlp_biases)
    else:
        mlp = StreamFlow(sites["mlp_out"], None)
    per_layer = StreamFlow(sites["per_layer_out"], None) if has_per_layer(model) else None
    return LayerFlow(factors, heads, None, attn_biases, mlp, per_layer)
