r"""The tables of `attention_scores`: a score as a sum over pairs of what the query and the key are made of.

With its norms frozen, a query $q = \sum_i Q a_i + \beta$ is affine in what components $i$ have written to the stream at
its token, and the key of token $s$ likewise, $k_s = \sum_j K_s b_{sj} + \gamma_s$. With weights $w_s$ of the keys,

$$\sum_s w_s\, q \cdot k_s = \sum_{ij} (Q a_i) \cdot \Big(\sum_s w_s K_s b_{sj}\Big) + \ldots,$$

where the dots are the pairs with $\beta$ or $\gamma$. The weight of a key is that of its score, 1 for the key that is
asked for, less that of the mean if the table is centred, times the factor of scores and the ratio of the softcap.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlin.attribution.circuits.expansion import (
    LayerFlow,
    has_experts,
    has_per_layer,
    has_several_streams,
    stream_factors,
    stream_writes,
    value_layers,
)
from jaxlin.attribution.circuits.places import Places, component_numbers, components, orders, part_numbers
from jaxlin.attribution.circuits.recorded_writes import recorded_writes, written_sites
from jaxlin.attribution.circuits.score_readers import Head, Reader, ScoreLayer
from jaxlin.attribution.circuits.stream_paths import taken
from jaxlin.attribution.circuits.token_blocks import TokenBlocks
from jaxlin.linearize.frozen import FrozenFactors, Recording, record
from jaxlin.nn import layers
from jaxlin.nn.biases import has_biases, without_biases
from jaxlin.nn.block_input import BlockInput
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Record, Replay
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.patterns import scores, visible
from jaxlin.nn.prompt import Embeddings, array_of
from jaxlin.nn.sites import InnerSite
from jaxlin.nn.stack import LayerIndex, layer_of, padded


class ScoreNumbers(NamedTuple):
    """What `score_numbers` returns. The last row and column of a table are the biases.

    Attributes:
        score: as it enters the softmax, from the forward pass.
        mean: the mean over the keys that the query sees.
        probability: the attention that the key gets.
        components: the table by component, for all places that one may have.
        present: which of these places the model has, or some token passes through.
        tokens: the table by token; None if it is not asked for.
    """

    score: Float[Array, ""]
    mean: Float[Array, ""]
    probability: Float[Array, ""]
    components: Float[Array, "c c"]
    present: Bool[Array, " c"]
    tokens: Float[Array, "n n"] | None


class Pair(NamedTuple):
    """A head, a query and a key.

    Attributes:
        layer: where the layer of the head is.
        keys: where the layer is whose keys it reads: the same, unless those of an earlier one are shared.
        head: the number of the head in it.
        query: the position that looks.
        key: the position that is looked at.
    """

    layer: LayerIndex
    keys: LayerIndex
    head: Any
    query: Any
    key: Any


@functools.partial(jax.jit, static_argnames=("rule", "below"))
def score_numbers(
    model: Decoder, x: Float[Embeddings, "t d"], pair: Pair, centred: Any, rule: Rule, below: int | None
) -> ScoreNumbers:
    """The score of one head at a query and a key, and its tables, less the mean over keys times `centred`.

    The table by token passes through the layers `below`; None leaves it out, and gives one program for layers alike.
    """
    recording = _recorded(model, x, rule)
    with model.at_precision():
        return _numbers(model, recording, array_of(x), pair, centred, below)


@functools.partial(jax.jit, static_argnames=("rule",))
def scores_of_pairs(model: Decoder, x: Float[Embeddings, "t d"], pairs: Pair, rule: Rule) -> ScoreNumbers:
    """Centred scores of several heads of layers alike, without tables by token, from one recording.

    Args:
        model: the model.
        x: the input embeddings.
        pairs: the heads, stacked.
        rule: the freeze rule.
    """
    recording = _recorded(model, x, rule)
    with model.at_precision():
        return jax.lax.map(lambda pair: _numbers(model, recording, array_of(x), pair, 1.0, None), pairs)


def _recorded(model: Decoder, x: Float[Embeddings, "t d"], rule: Rule) -> Recording:
    inner = (InnerSite.ATTN_IN, InnerSite.QUERIES, InnerSite.KEYS, InnerSite.PATTERN)
    return record(model, x, (*inner, *written_sites(model, experts=has_experts(model))), rule=rule)


def _numbers(
    model: Decoder, recording: Recording, x: Float[Array, "t d"], pair: Pair, centred: Any, below: int | None
) -> ScoreNumbers:
    layer, key_layer, head, query, key = pair
    tokens, factors = x.shape[0], stream_factors(model)
    stacks = model.layers, model.schedule(tokens), recording.sites
    block, schedule, sites = layer_of(stacks, layer)
    key_block, key_schedule, key_sites = layer_of(stacks, key_layer)
    attention, q, k = getattr(block, block.mixer), sites[InnerSite.QUERIES], key_sites[InnerSite.KEYS]

    def row(softcap: float | None) -> Float[Array, " t"]:
        return scores(q[query][None], k, attention.scale, softcap)[head, 0]

    at_keys, positions = row(attention.softcap), jnp.arange(tokens)
    sees = visible(query[None], positions, schedule.first_visible[query][None])[0]
    mean = sees / jnp.sum(sees).astype(at_keys.dtype)
    weights = ((positions == key) - centred * mean) * attention.scale
    if attention.softcap is not None:
        capped = Record()
        layers.softcap(row(None), attention.softcap, Context(capped))
        weights = weights * capped.factors["softcap"]
    queries = ScoreLayer(layer, block, sites[InnerSite.ATTN_IN], schedule, factors[layer.layer])
    keys = ScoreLayer(key_layer, key_block, key_sites[InnerSite.ATTN_IN], key_schedule, factors[key_layer.layer])
    own = Head(head, q.shape[1], queries, keys, query, weights.astype(x.dtype))
    table, present = _component_table(model, recording, x, own)
    return ScoreNumbers(
        score=at_keys[key],
        mean=jnp.sum(jnp.where(sees, at_keys, 0) * mean),
        probability=sites[InnerSite.PATTERN].row(query)[head, key],
        components=table,
        present=present,
        tokens=None if below is None else _token_table(model, recording.frozen, x, own, below),
    )


def score_places(model: Decoder, heads: int) -> Places:
    """The places of the components of a layer, of which `heads` are the heads."""
    experts = model.config.num_experts if has_experts(model) else 0
    biases = int(has_biases(model))
    return Places(heads, biases, experts + 1, biases if experts else 0, int(has_per_layer(model)))


def _component_table(
    model: Decoder, recording: Recording, x: Float[Array, "t d"], head: Head
) -> tuple[Float[Array, "c c"], Bool[Array, " c"]]:
    """The table by component, and which there are, also those from the layer on, which write nothing that it reads."""
    flow = recorded_writes(model, recording, experts=has_experts(model))
    existing = jnp.isfinite(padded(model.layout.map(lambda z: z[:, 0, :, 0], flow.head_outputs)))
    shape = score_places(model, existing.shape[1])
    numbers, _ = component_numbers(shape, part_numbers(model, len(x), recording.sites.get(InnerSite.ROUTE)))
    count = 1 + model.layout.depth * shape.writers
    if has_several_streams(model):
        queries, keys = _vectors_through_streams(model, recording.frozen, flow, x, head, shape)
    else:
        queries, keys = _vectors_in_blocks(model, flow, x, head, numbers, count)
        rows = jnp.arange(count + 1)
        enters_keys = (rows < 1 + head.keys.where.layer * shape.writers) | (rows == count)
        keys = jnp.where(enters_keys[:, None], keys, 0)
    heads = 1 + shape.writers * np.arange(model.layout.depth)[:, None] + np.arange(shape.heads)[None]
    present = jnp.zeros(count + 1, bool).at[numbers].set(True, mode="drop").at[count].set(True)
    present = present.at[heads].set(existing)
    return jnp.einsum("ik,jk->ij", queries, keys, precision=HIGHEST), present


def _vectors_in_blocks(
    model: Decoder, flow: LayerFlow, x: Float[Array, "t d"], head: Head, numbers: Int[Array, "a t"], count: int
) -> tuple[Float[Array, "c k"], Float[Array, "c k"]]:
    """The query of what each of `count` components has written, and of biases, and the sum of the keys likewise."""
    tokens, d = x.shape
    factors = stream_factors(model)
    blocks = TokenBlocks.of(tokens, (len(numbers) + model.config.head_dim) * d * x.dtype.itemsize)

    def parts(
        reader: Reader, factor: Any, flow: LayerFlow, embed: Float[Array, "s d"], numbers: Int[Array, "a s"]
    ) -> Float[Array, "c k"]:
        writes = jnp.concatenate([embed[None], stream_writes(model, flow).reshape(-1, *embed.shape)]) / factor
        values = jnp.einsum("asd,ksd->ask", writes, reader.rows, precision=HIGHEST)
        zeros = jnp.zeros((count + 1, values.shape[2]), values.dtype)
        return zeros.at[numbers].add(values, mode="drop").at[count].set(jnp.sum(reader.biases, axis=0))

    def some(values: Any, start: Any, size: int) -> Any:
        flow, embed, numbers = values

        def at(tree: Any, axis: int) -> Any:
            return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis), tree)

        return at(flow, 1), at(embed, 0), at(numbers, 1)

    values = flow, x * factors[0], numbers
    queries = parts(head.query_reader(), head.queries.factor, *some(values, head.query, 1))
    flow = jax.tree.map(lambda a: blocks.padded(a, 1), flow)
    values = flow, blocks.padded(x * factors[0], 0), blocks.padded(numbers, 1, count + 1)
    head = head.padded(blocks)

    def add_block(total: Float[Array, "c k"], start: Array) -> Float[Array, "c k"]:
        reader = head.key_reader(start, blocks.size)
        return total + parts(reader, head.keys.factor, *some(values, start, blocks.size))

    return queries, blocks.total(add_block, jnp.zeros_like(queries))


def _vectors_through_streams(
    model: Decoder, frozen: FrozenFactors, flow: LayerFlow, x: Float[Array, "t d"], head: Head, shape: Places
) -> tuple[Float[Array, "c k"], Float[Array, "c k"]]:
    """As `_vectors_in_blocks`, of a model with several streams, one feature at a time."""
    writes = jnp.concatenate([x[None], stream_writes(model, flow).reshape(-1, *x.shape)])
    written_at = jnp.array([each.order for each in components(model, shape)])
    places = jnp.array([each.attention for each in orders(model)])

    def vectors(reader: Reader, start: Any, layer: ScoreLayer) -> Float[Array, "c k"]:
        rows = jnp.zeros((len(reader.rows), *x.shape), x.dtype)
        rows = jax.lax.dynamic_update_slice_in_dim(rows, reader.rows, start, axis=1)

        def of_feature(row: Float[Array, "t d"]) -> Float[Array, " c"]:
            return jnp.sum(taken(model, frozen, writes, written_at, row, places[layer.where.layer]), axis=1)

        return jnp.concatenate([jax.lax.map(of_feature, rows).T, jnp.sum(reader.biases, axis=0, keepdims=True)])

    queries = vectors(head.query_reader(), head.query, head.queries)
    return queries, vectors(head.key_reader(0, len(x)), 0, head.keys)


def _token_table(
    model: Decoder, frozen: FrozenFactors, x: Float[Array, "t d"], head: Head, layer: int
) -> Float[Array, "n n"]:
    """The table by token, whose part of the stream before the layer goes through the frozen layers before it."""
    tokens, d = x.shape
    key_layer, locate = int(value_layers(model)[layer]), model.layout.locate
    query, keys = head.query_reader(), head.key_reader(0, tokens)

    def attention_reads(model: Decoder, layer: int, entering: BlockInput) -> Float[Array, "t b d"]:
        if not has_several_streams(model):
            return entering.stream
        ctx = Context(Replay(layer_of(frozen.layers, locate(layer))))
        model.block(locate(layer), entering, ctx)
        return ctx.hooks.values[InnerSite.ATTN_IN]

    def run(model: Decoder, stream: Float[Array, "t b d"]) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
        """What of the query, and of the keys, a stream before the first layer makes."""

        def frozen_layer(own: Any) -> Context:
            return Context(Replay(own))

        at_keys, _ = model.scan(BlockInput(stream), frozen_layer, frozen.layers, stop=key_layer)
        at_layer, _ = model.scan(at_keys, frozen_layer, frozen.layers, start=key_layer, stop=layer)
        stream, key_stream = attention_reads(model, layer, at_layer), attention_reads(model, key_layer, at_keys)
        at_query = jax.lax.dynamic_slice_in_dim(stream, head.query, 1)
        pairs = (at_query, query.rows), (key_stream, keys.rows)
        by_query, by_key = (jnp.einsum("tbd,ktd->bk", *pair, precision=HIGHEST) for pair in pairs)
        return by_query, by_key

    bare = without_biases(model)
    # A replay holds a few times the stream: that of each token at all tokens, and the hidden neurons of an MLP.
    blocks = TokenBlocks.of(tokens, tokens * (4 * d + 2 * model.config.neurons) * x.dtype.itemsize)

    def of_block(start: Array) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
        alone = jnp.arange(tokens)[:, None] == (start + jnp.arange(blocks.size))[None]
        return run(bare, jnp.where(alone[..., None], x[:, None], 0))

    parts = jax.lax.map(of_block, blocks.size * jnp.arange(blocks.count))
    queries, by_key = (part.reshape(-1, part.shape[2])[:tokens] for part in parts)
    at_zero = [jnp.sum(reader.biases, axis=0, keepdims=True) for reader in (query, keys)]
    if has_biases(model):
        from_layers = run(model, jnp.zeros_like(x)[:, None])
        at_zero = [own + part for own, part in zip(at_zero, from_layers, strict=True)]
    queries, by_key = (jnp.concatenate([part, biases]) for part, biases in zip((queries, by_key), at_zero, strict=True))
    return jnp.einsum("ik,jk->ij", queries, by_key, precision=HIGHEST)
