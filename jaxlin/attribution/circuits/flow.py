r"""The frozen model as a flow network: what every component writes to the residual stream, and how every one reads it.

A component $c$ is a query head, an MLP or one of its experts, what adds per-layer embeddings, the embeddings, or
biases. It adds $o_c[t]$ to the stream of token $t$, and through $c$ alone the target has the gradient $r_c[t]$ in the
stream. The edge from $a$ to a later $b$,

$$e(a \to b) = \sum_t r_b[t] \cdot o_a[t],$$

is what $b$ makes of what $a$ has written. One forward pass gives all $o$ and one backward pass all $r$. Here they
are in compact form: a head has its own features, not those of the stream (`jaxlin.attribution.circuits.expansion`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.circuits.expansion import (
    ExpertFlow,
    LayerFlow,
    StreamFlow,
    has_experts,
    has_per_layer,
    map_value_blocks,
    needed_factors,
    neuron_parts,
    slots,
)
from jaxlin.attribution.expert_parts import outputs_without_neurons
from jaxlin.linearize.backward import pull_back
from jaxlin.linearize.frozen import FrozenFactors, record
from jaxlin.linearize.targets import ResolvedTarget, target_direction
from jaxlin.nn.biases import has_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings, array_of
from jaxlin.nn.sites import InnerSite
from jaxlin.nn.stack import padded


class Flow(NamedTuple):
    """What flows through the frozen model towards one target.

    Attributes:
        value: the value of the target.
        final_bias: what the biases of the final norm and of the unembedding contribute to it.
        direction: the gradient in the stream after the last block, ``[t, d]``.
        embed: the embeddings, ``[t, d]``.
        embed_effect: the total effect of the embeddings.
        frozen: the frozen factors.
        layers: what the components of all layers write and read.
        routes: the experts of each token, stacked over layers; None without any.
        heads: the total effect of each head, ``[l, h]``.
        parts: that of each part of the MLP at each token, ``[l, t, p]``, see `expansion.neuron_parts`.
        per_layer: that of what adds per-layer embeddings, ``[l]``; empty in a model without any.
        head_biases: what the biases of its values contribute to each head, likewise.
        part_biases: what the biases within it contribute to each part, likewise.
        biases: the total effect of each layer's biases that belong to no head or part, ``[l]`` each: of attention, and
            in a mixture of experts of the MLP; empty in a model without biases.
    """

    value: Float[Array, ""]
    final_bias: Float[Array, ""]
    direction: Float[Array, "t d"]
    embed: Float[Array, "t d"]
    embed_effect: Float[Array, ""]
    frozen: FrozenFactors
    layers: LayerFlow
    routes: Any
    heads: Float[Array, "l h"]
    parts: Float[Array, "l t p"]
    per_layer: list[Float[Array, " l"]]
    head_biases: Float[Array, "l h"]
    part_biases: Float[Array, "l t p"]
    biases: list[Float[Array, " l"]]


def flow(
    model: Decoder, x: Float[Embeddings, "t d"], position: Any, target: ResolvedTarget, rule: Rule, remat: bool
) -> Flow:
    """The flow to the `target` at `position`, from one recording pass and one backward pass."""
    experts: tuple[str, ...] = (InnerSite.NEURONS, InnerSite.ROUTE) if has_experts(model) else ()
    per_layer_out: tuple[str, ...] = ("per_layer_out",) if has_per_layer(model) else ()
    kinds = (InnerSite.HEADS, InnerSite.GATED_HEADS, "mlp_out", *per_layer_out, *experts)
    recording = record(model, x, kinds, rule=rule, remat=remat)
    sites, frozen, x = recording.sites, recording.frozen, array_of(x)
    value, final_bias, direction = target_direction(model, recording, target, position)
    heads, outputs = sites[InnerSite.HEADS], sites["mlp_out"]
    like = {InnerSite.HEADS: heads, "attn_out": outputs, InnerSite.MLP_IN: outputs, "mlp_out": outputs}
    like |= {kind: sites[kind] for kind in experts[:1]}
    like |= {kind: outputs for site in per_layer_out for kind in (InnerSite.PER_LAYER_IN, site)}
    gradients = pull_back(model, frozen, direction, like)
    into = gradients.added

    at_zero = _replay_at_zero(model, frozen.layers, into[InnerSite.HEADS], x, experts[:1])
    head_reads = map_value_blocks(
        model, lambda block, ctx, read: block.pull_values(read, ctx), at_zero.factors, at_zero.in_values
    )
    biases = {kind: at_zero.outputs[kind] for kind in ("attn_out", "mlp_out")} if has_biases(model) else {}
    if experts:
        neurons, routes = (sites[kind] for kind in experts)
        parts = _part_sums(model, into[InnerSite.NEURONS], neurons, routes)
        part_biases = jnp.zeros_like(parts)
        if biases:
            part_biases = _part_sums(model, into[InnerSite.NEURONS], at_zero.outputs[InnerSite.NEURONS], routes)
            biases["mlp_out"] = outputs_without_neurons(model, frozen, neurons)
        mlp: Any = ExpertFlow(neurons, into[InnerSite.NEURONS], routes, biases.get("mlp_out"))
    else:
        routes = None
        parts = _dot(into["mlp_out"], outputs)[..., None]
        part_biases = _dot(into["mlp_out"], biases.pop("mlp_out"))[..., None] if biases else jnp.zeros_like(parts)
        mlp = StreamFlow(outputs, into[InnerSite.MLP_IN])
    per_layer = StreamFlow(sites["per_layer_out"], into[InnerSite.PER_LAYER_IN]) if per_layer_out else None
    of_rows = [jnp.sum(_dot(into[site], sites[site]), axis=1) for site in per_layer_out]
    return Flow(
        value=value,
        final_bias=final_bias,
        direction=direction,
        embed=x,
        embed_effect=jnp.sum(gradients.stream * x),
        frozen=frozen,
        layers=LayerFlow(
            at_zero.factors, sites[InnerSite.GATED_HEADS], head_reads, biases.get("attn_out"), mlp, per_layer
        ),
        routes=routes,
        heads=padded(model.layout.map(lambda a, b: jnp.sum(_dot(a, b), axis=1), into[InnerSite.HEADS], heads)),
        parts=parts,
        per_layer=of_rows,
        head_biases=padded(at_zero.by_head),
        part_biases=part_biases,
        biases=[jnp.sum(_dot(into[kind], each), axis=1) for kind, each in biases.items()],
    )


class _AtZero(NamedTuple):
    """What `_replay_at_zero` returns, stacked over layers.

    Attributes:
        in_values: the gradient in each head's own copy of its values, ``[l, t, h, k]``.
        by_head: that gradient times the values at zero, ``[l, h]``.
        outputs: the values of some sites at zero, ``[l, t, ...]``; none of a model without biases.
        factors: the frozen factors without the patterns, and without those of MLPs that have no experts.
    """

    in_values: Any
    by_head: Any
    outputs: dict[str, Any]
    factors: Any


def _replay_at_zero(model: Decoder, factors: Any, in_heads: Any, x: Float[Array, "t d"], inner: Any) -> _AtZero:
    """Replay each block with a stream of zeros and without its heads, so that its biases alone are left.

    Of a model without biases nothing is left: what is not collected is not computed.
    """
    kinds = ("attn_out", "mlp_out", *inner) if has_biases(model) else ()

    def make_context(row: Any) -> Context:
        own_factors, gradients = row

        def in_values(pattern: Any) -> Float[Array, "t h k"]:
            return jax.linear_transpose(pattern.mix, gradients)(gradients)[0]

        zeros: dict[str, Any] = dict.fromkeys((InnerSite.ATTN_IN, InnerSite.MLP_IN), jnp.zeros_like(x))
        zeros[InnerSite.HEADS] = jnp.zeros_like(gradients)
        return Context(Replay(own_factors), Hooks(replacements=zeros, readers={InnerSite.PATTERN: in_values}))

    def collect(ctx: Context) -> Any:
        values = ctx.hooks.values
        in_values, own = values[InnerSite.PATTERN], values[InnerSite.VALUES]
        t, n, k = own.shape
        by_head = jnp.zeros(in_values.shape[1], in_values.dtype)
        if kinds:
            by_head = jnp.einsum("tngk,tnk->ng", in_values.reshape(t, n, -1, k), own, precision=HIGHEST).reshape(-1)
        needed = needed_factors(ctx.mode.factors, bool(inner))
        return in_values, by_head, tuple(values[kind] for kind in kinds), needed

    _, (in_values, by_head, outputs, needed) = model.scan(x, make_context, (factors, in_heads), collect=collect)
    return _AtZero(in_values, by_head, dict(zip(kinds, outputs, strict=True)), needed)


def _dot(a: Float[Array, "*b d"], b: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    return jnp.einsum("...d,...d->...", a, b, precision=HIGHEST)


def _part_sums(model: Decoder, gradients: Any, neurons: Any, routes: Any) -> Float[Array, "l t p"]:
    """The effects of the neurons of each part of an MLP."""

    def sums(gradients: Float[Array, "l t n"], neurons: Float[Array, "l t n"], route: Any) -> Float[Array, "l t p"]:
        zeros = jnp.zeros((*neurons.shape[:-1], slots(model)), neurons.dtype)
        return zeros.at[..., neuron_parts(model, neurons.shape[-1], route)].add(gradients * neurons)

    return model.layout.map(sums, gradients, neurons, routes)
