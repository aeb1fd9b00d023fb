r"""What every part of the input and of the model contributes to a logit: the program behind `jaxlin.attribute`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.head_sources import contributions_by_source
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
from jaxlin.nn.sites import InnerSite


@functools.partial(jax.jit, static_argnames=("rule", "neurons", "sources", "remat"))
def contributions(
    model: Decoder,
    x: Float[Array, "t d"],
    position: Any,
    target: ResolvedTarget,
    rule: Rule,
    neurons: int,
    sources: bool = False,
    remat: bool = False,
) -> dict[str, Array]:
    """The fields of a `jaxlin.Attribution`, as one program: a forward pass, and one backward pass of what it held.

    Args:
        model: the decoder.
        x: the input embeddings.
        position: where the target is read.
        target: a direction of the output, the id of a token, or those of two.
        rule: the freeze rule of gated MLPs.
        neurons: how many of the largest are returned: ``neurons`` are their numbers over all layers, ``largest`` what
            they contribute.
        sources: whether what each head brings from each position is returned too.
        remat: see `jaxlin.freeze`.
    """
    kinds = ("attn_out", "mlp_out", InnerSite.HEADS, InnerSite.NEURONS)
    recording = record(model, x, kinds, rule=rule, position=position, remat=remat)
    held, seen = recording.frozen, recording.sites
    heads, hidden = seen[InnerSite.HEADS], seen[InnerSite.NEURONS]
    value, final_bias, direction = target_direction(model, recording, target, position)

    def dot(rows: Float[Array, "*b d"]) -> Float[Array, "*b"]:
        return jnp.einsum("...d,d->...", rows, direction[position], precision=HIGHEST)

    gradients = pull_back(model, held, direction, biases=True)
    head_slopes, neuron_slopes = _slopes(model, held, x, heads, hidden, position, direction)
    if has_biases(model):
        zeros = map(jnp.zeros_like, (x, heads, hidden))
        attn_bias, mlp_bias = map(dot, _written(model, *zeros, held=held, position=position))
    else:
        attn_bias = mlp_bias = jnp.zeros(model.config.num_hidden_layers, x.dtype)
    flat = (neuron_slopes * hidden).reshape(-1)
    _, largest = jax.lax.top_k(jnp.abs(flat), neurons)
    found = {
        "value": value,
        "tokens": jnp.einsum("td,td->t", gradients.stream, x, precision=HIGHEST),
        "bias": jnp.sum(gradients.biases) + final_bias,
        "embed": dot(x[position]),
        "attn": dot(seen["attn_out"]),
        "mlp": dot(seen["mlp_out"]),
        "heads": jnp.einsum("lhk,lhk->lh", head_slopes, heads, precision=HIGHEST),
        "neurons": largest,
        "largest": flat[largest],
        "attn_bias": attn_bias,
        "mlp_bias": mlp_bias,
        "final_bias": final_bias,
    }
    return found | {"sources": contributions_by_source(model, held, x, head_slopes, position)} if sources else found


def _slopes(
    model: Decoder,
    held: FrozenFactors,
    x: Float[Array, "t d"],
    heads: Float[Array, "l h k"],
    neurons: Float[Array, "l f"],
    position: Any,
    direction: Float[Array, "t d"],
) -> tuple[Float[Array, "l h k"], Float[Array, "l f"]]:
    """The slopes of the target in `heads` and `neurons` at `position`, through what their own layer writes alone."""
    written = functools.partial(_written, held=held, position=position)
    ct = jnp.broadcast_to(direction[position][None, :], (heads.shape[0], x.shape[1]))
    return transpose(written, model, x, heads, neurons)((ct, ct))[1:]


def _written(
    model: Decoder,
    stream: Float[Array, "t d"],
    heads: Float[Array, "l h k"],
    neurons: Float[Array, "l f"],
    *,
    held: FrozenFactors,
    position: Any,
) -> tuple[Float[Array, "l d"], Float[Array, "l d"]]:
    """What attention and MLP of each layer add at `position`, given their heads and neurons there.

    With these replaced, no layer depends on another, nor on the stream.
    """
    tokens = stream.shape[0]

    def placed(row: Array) -> Array:
        return jnp.zeros((tokens, *row.shape), row.dtype).at[position].set(row)

    def make_context(row: Any) -> Context:
        factors, heads, neurons = row
        replacements: dict[str, Any] = {InnerSite.HEADS: placed(heads), InnerSite.NEURONS: placed(neurons)}
        return Context(Replay(factors), Hooks(replacements=replacements))

    def collect(ctx: Context) -> Any:
        return ctx.hooks.values["attn_out"][position], ctx.hooks.values["mlp_out"][position]

    return model.scan(stream, make_context, (held.layers, heads, neurons), collect=collect)[1]
