r"""Runs of the ordinary model in which each component reads a residual stream of its own.

The stream is a sum of what all components have written: $x = \sum_a o_a$. In the model as it is, all components read
the same sum. Here a component $b$ reads $\sum_{a \to b} o_a + \sum_{\text{other } a} c_a$: what is written in this run
along the edges that are intact, and substitutes $c_a$ along all others, as the values of another prompt. Nothing is
frozen.

A head that reads the keys and values of an earlier layer reads these in the stream of that layer, and its query in that
of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlin.attribution.circuits.expansion import (
    has_per_layer,
    shared_kind,
    shared_layers,
    stream_factors,
    stream_writes,
)
from jaxlin.attribution.circuits.places import Places
from jaxlin.attribution.circuits.recorded_writes import recorded_writes, written_sites
from jaxlin.causal.heads import head_counts
from jaxlin.linearize.frozen import record
from jaxlin.nn.biases import has_biases, without_biases
from jaxlin.nn.block_input import BlockInput
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import FreezeMode, Record, Replay
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layer_scan import scan_layers
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings, array_of
from jaxlin.nn.sites import InnerSite


class Intact(NamedTuple):
    """Which edges are intact, for all places that a component may have: see `places_of`.

    Attributes:
        heads: from each writer to each head, ``[l, a, h]``.
        mlps: from each writer to each MLP, ``[l, a]``.
        per_layer: from each writer to what adds per-layer embeddings, ``[l, a]``; None in a model without any.
        direct: from each writer to the output.
    """

    heads: Bool[Array, "l a h"]
    mlps: Bool[Array, "l a"]
    per_layer: Bool[Array, "l a"] | None
    direct: Bool[Array, " a"]


class _Written(NamedTuple):
    """What has been written so far, and the sum of the substitutes, in the units of the stream after the last block.

    Attributes:
        changes: what each component has written, less its substitute, ``[a, t, d]``; 0 of those to come.
        substitutes: the sum of the substitutes.
    """

    changes: Float[Array, "a t d"]
    substitutes: Float[Array, "t d"]


def places_of(model: Decoder) -> Places:
    """The places of a layer: heads, biases of attention if the model has biases, its MLP, and per-layer embeddings."""
    return Places(max(head_counts(model)), int(has_biases(model)), 1, 0, int(has_per_layer(model)))


def writes(model: Decoder, x: Float[Embeddings, "t d"]) -> tuple[Float[Array, "a t d"], Any]:
    """What each component writes at `x` in the model as it is, the embeddings first, and the attention patterns."""
    recording = record(model, x, (InnerSite.PATTERN, *written_sites(model, experts=False)))
    rows, x = stream_writes(model, recorded_writes(model, recording, experts=False)), array_of(x)
    embedded = stream_factors(model)[0] * x[None]
    return jnp.concatenate([embedded, rows.reshape(-1, *x.shape)]), recording.sites[InnerSite.PATTERN]


def attention_writes(bare: Any, ctx: Context, heads: Float[Array, "t h k"], shape: Places) -> Float[Array, "w t d"]:
    """What each head of a block that has run adds to the stream, and then what its biases add.

    A norm after attention is divided among the heads by its inverse root in this run.

    Args:
        bare: the block without its biases.
        ctx: the recording context that the block has run in.
        heads: what entered the output projection.
        shape: the places of a layer.
    """
    written = jnp.swapaxes(bare.write_heads(heads, Context(Replay(ctx.mode.factors))), 0, 1)
    written = jnp.pad(written, [(0, shape.heads - len(written)), (0, 0), (0, 0)])
    if shape.attn_bias:
        rest = ctx.hooks.values["attn_out"] - jnp.sum(written, axis=0)
        written = jnp.concatenate([written, rest[None]])
    return written


def heads_apart(
    block: Any, schedule: Any, entering: BlockInput, *, mode: FreezeMode | None = None, pattern: Any = None
) -> Float[Array, "t h k"]:
    """What enters the output projection if each head reads a stream of its own; queries and keys only if no `pattern`.

    Each stream is read by all heads, of which one is taken. There may be more streams than heads.

    Args:
        block: the block.
        schedule: its schedule.
        entering: what enters it, with an axis of heads before all but the per-layer input.
        mode: the freeze mode.
        pattern: an attention pattern in place of that of queries and keys.
    """
    hooks: dict[str, Any] = {} if pattern is None else {InnerSite.PATTERN: pattern}

    def read(stream: Float[Array, "t d"], shared: Any) -> Float[Array, "t h k"]:
        ctx = Context(mode, Hooks(replacements=hooks))
        ctx.run(block, schedule, entering._replace(stream=stream, shared=shared))
        return ctx.hooks.values[InnerSite.GATED_HEADS]

    read_all = jax.vmap(read)(entering.stream, entering.shared)
    count = read_all.shape[2]
    return jnp.moveaxis(jnp.diagonal(read_all[:count], axis1=0, axis2=2), -1, 1)


def output(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    substitutes: Float[Array, "a t d"],
    intact: Intact,
    patterns: Any = None,
) -> Float[Array, "t d"]:
    """The output after the final norm, if only some edges are intact.

    Args:
        model: the decoder.
        x: the input embeddings.
        substitutes: what stands in for what each component writes, as `writes` returns it.
        intact: the edges that are intact. What the biases of attention add is always read.
        patterns: attention patterns of all layers, where heads are to read their values alone along the edges.
    """
    shape, factors, sequential = places_of(model), stream_factors(model), "resid_mid" in model.sites
    width, depth, inputs = shape.writers, model.layout.depth, model.begin(x)
    stacks = model.layers, model.schedule(x.shape[0]), inputs.per_layer
    sources = shared_layers(model, *stacks)
    is_bias = jnp.tile(jnp.arange(width) == shape.heads, depth) & bool(shape.attn_bias)
    always = jnp.append(jnp.zeros(1, bool), is_bias)

    def mixed(written: _Written, through: Any, factor: Any) -> Any:
        """What readers read, ``[..., t, d]``, from which edges are intact, ``[a, ...]``."""
        through = through | always.reshape(-1, *(1,) * (through.ndim - 1))
        changes = jnp.einsum("a...,atd->...td", through.astype(x.dtype), written.changes, precision=HIGHEST)
        return (jnp.broadcast_to(written.substitutes, changes.shape) + changes) / factor

    def add(written: _Written, rows: Float[Array, "w t d"], first: Any, factor: Any) -> _Written:
        own = jax.lax.dynamic_slice_in_dim(substitutes, first, len(rows))
        changes = jax.lax.dynamic_update_slice_in_dim(written.changes, factor * rows - own, first, axis=0)
        return _Written(changes, written.substitutes + jnp.sum(own, axis=0))

    def shared_values(kind: str, written: _Written, to_heads: Bool[Array, "a h"]) -> Any:
        """The keys and values of an earlier layer, if each head that reads them has a stream of its own there."""
        layer, block, schedule, per_layer = sources[kind]
        rows = 1 + layer * width
        is_before = jnp.arange(len(substitutes)) < rows
        changes = jnp.where(is_before[:, None, None], written.changes, 0)
        before = _Written(changes, jnp.sum(substitutes[:rows], axis=0))

        def read(stream: Float[Array, "t d"]) -> Any:
            return Context().run(block, schedule, BlockInput(stream, per_layer=per_layer)).shared

        return jax.vmap(read)(mixed(before, to_heads, factors[layer]))

    def step(written: _Written, layer: Any) -> tuple[_Written, None]:
        (block, schedule, per_layer), number, bare, factor, to, pattern = layer
        first, kind = 1 + number * width, shared_kind(block)
        shared = {} if kind is None else shared_values(kind, written, to.heads)
        entering = BlockInput(mixed(written, to.heads, factor), shared, per_layer)
        heads = heads_apart(block, schedule, entering, pattern=pattern)
        ctx = Context(Record(), Hooks(replacements={InnerSite.GATED_HEADS: heads}))
        stream, shared = jax.tree.map(lambda a: a[0], (entering.stream, shared))
        ctx.run(block, schedule, BlockInput(stream, shared, per_layer))
        after = add(written, attention_writes(bare, ctx, heads, shape), first, factor)
        added = block.feed_forward(mixed(after if sequential else written, to.mlps, factor), Context())
        after = add(after, added[None], first + shape.heads + shape.attn_bias, factor)
        if shape.per_layer:
            reading = Context()
            reading.inputs = entering
            added = block.per_layer(mixed(after, to.per_layer, factor), reading)
            after = add(after, added[None], first + width - 1, factor)
        return after, None

    embedded = jnp.zeros_like(substitutes).at[0].set(factors[0] * array_of(x) - substitutes[0])
    to_layers = intact._replace(direct=None)
    rows = stacks, jnp.arange(depth), without_biases(model.layers), factors, to_layers, patterns
    with model.at_precision():
        written, _ = scan_layers(model.layout, step, _Written(embedded, substitutes[0]), rows, 0, depth)
        return model.norm(mixed(written, intact.direct, 1), Context())
