"""The compiled program of `jaxlin.attribute`: the contributions of all parts of the input and of the model."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.direct_paths import direct_directions
from jaxlin.attribution.expert_parts import experts_of, sum_parts
from jaxlin.attribution.head_sources import contributions_by_source
from jaxlin.attribution.result import Neurons
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.backward import pull_back, transpose
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
from jaxlin.nn.sites import CHANGES, InnerSite
from jaxlin.nn.stack import Stack, padded


@functools.partial(jax.jit, static_argnames=("rule", "neurons", "sources", "remat"))
def contributions(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    position: Any,
    target: ResolvedTarget,
    rule: Rule,
    neurons: int,
    sources: bool = False,
    remat: bool = False,
) -> dict[str, Any]:
    """The fields of a `jaxlin.Attribution`, from one forward pass and one backward pass of the frozen model.

    The arguments are those of `jaxlin.attribute` after its checks, with the target resolved.

    Raises:
        JaxlinError: the model has fewer neurons.
    """
    kinds = ("attn_out", "mlp_out", InnerSite.HEADS, InnerSite.NEURONS, InnerSite.ROUTE)
    kinds += ("per_layer_out",) if "per_layer_out" in model.sites else ()
    kinds += CHANGES if model.edits is not None else ()
    recording = record(model, x, kinds, rule=rule, position=position, remat=remat)
    frozen, sites, depth = recording.frozen, recording.sites, model.config.num_hidden_layers
    heads, hidden, routes = (sites[kind] for kind in kinds[2:5])
    value, final_bias, direction = target_direction(model, recording, target, position)
    x = array_of(x)

    def along(directions: Float[Array, "#*b d"], rows: Float[Array, "#*b d"]) -> Float[Array, "..."]:
        return jnp.einsum("...d,...d->...", directions, rows, precision=HIGHEST)

    gradients = pull_back(model, frozen, direction, biases=True)
    layer_outputs = functools.partial(_layer_outputs, frozen=frozen, position=position)
    # The gradients in heads and neurons count the direct path alone: through the output of their own layer.
    factors = model.direct_factors()
    if factors is None and model.edits is not None:
        raise JaxlinError(
            "Attribution: expected a model without edits, as layers of this one mix several streams, and what an edit "
            "changes in one of them has no direct path of its own; found edits. Maps and lenses take them."
        )
    of_embedding, of_kind = direct_directions(model, frozen, direction, position)
    of_outputs = of_kind["attn_out"], of_kind["mlp_out"]
    _, head_gradients, neuron_gradients = transpose(layer_outputs, model, x, heads, hidden)(of_outputs)
    attn_bias = mlp_bias = jnp.zeros(depth, x.dtype)
    if has_biases(model):  # the outputs without heads and neurons are the biases
        outputs = layer_outputs(model, *jax.tree.map(jnp.zeros_like, (x, heads, hidden)))
        attn_bias, mlp_bias = map(along, of_outputs, outputs)
    by_head = functools.partial(jnp.einsum, "lhk,lhk->lh", precision=HIGHEST)
    neuron_contributions = model.layout.map(jnp.multiply, neuron_gradients, hidden)
    expert_contributions = model.layout.map(functools.partial(sum_parts, model), neuron_contributions, routes)
    neuron_contributions = padded(neuron_contributions)
    count, width = sum(math.prod(part.shape) for part in jax.tree.leaves(hidden)), neuron_contributions.shape[1]
    if not 0 <= neurons <= count:
        raise JaxlinError(f"Neurons: expected a number in 0..{count}; found {neurons}.")
    neuron_contributions = neuron_contributions.reshape(-1)
    _, largest = jax.lax.top_k(jnp.nan_to_num(jnp.abs(neuron_contributions), nan=-1.0), neurons)
    parts = {
        "value": value,
        "tokens": jnp.einsum("td,td->t", gradients.stream, x, precision=HIGHEST),
        "bias": jnp.sum(gradients.biases) + final_bias,
        "embed": along(of_embedding, x[position]),
        "attn": along(of_kind["attn_out"], sites["attn_out"]),
        "mlp": along(of_kind["mlp_out"], sites["mlp_out"]),
        "heads": padded(model.layout.map(by_head, head_gradients, heads)),
        "neurons": Neurons(largest // width, largest % width, neuron_contributions[largest]),
        "attn_bias": attn_bias,
        "mlp_bias": mlp_bias,
        "final_bias": final_bias,
        "experts": experts_of(model.layout, routes, expert_contributions, mlp_bias),
    }
    if "per_layer_out" in sites:
        parts["per_layer"] = along(of_kind["per_layer_out"], sites["per_layer_out"])
    if factors is not None and model.edits is not None:
        # What an edit adds after a block does not pass that block's factor; the last one has none after it.
        after = jnp.concatenate([factors[1:], jnp.ones_like(factors[:1])])
        within, behind = (along(direction[position][None], sites[name]) for name in CHANGES)
        parts["edits"] = factors * within + after * behind
    if sources:
        parts["sources"] = contributions_by_source(model, frozen, x, head_gradients, position)
    return parts


def _layer_outputs(
    model: Decoder,
    stream: Float[Array, "t d"],
    heads: Float[Array, "l h k"] | Stack,
    neurons: Float[Array, "l f"] | Stack,
    *,
    frozen: FrozenFactors,
    position: Any,
) -> tuple[Float[Array, "l d"], Float[Array, "l d"]]:
    """The outputs of attention and MLP of each layer at `position`, as functions of their heads and neurons there.

    The heads and neurons replace those that the model computes, so that no layer depends on another, nor on `stream`.
    """

    def at_position(values: Array) -> Array:
        return jnp.zeros((stream.shape[0], *values.shape), values.dtype).at[position].set(values)

    def make_context(layer: Any) -> Context:
        factors, heads, neurons = layer
        replacements: dict[str, Any] = {InnerSite.HEADS: at_position(heads), InnerSite.NEURONS: at_position(neurons)}
        return Context(Replay(factors), Hooks(replacements=replacements))

    def collect(ctx: Context) -> Any:
        return ctx.hooks.values["attn_out"][position], ctx.hooks.values["mlp_out"][position]

    return model.scan(stream, make_context, (frozen.layers, heads, neurons), collect=collect)[1]
