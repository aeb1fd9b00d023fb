"""The edges of a flow network, from what each component writes and how each reads it, some tokens at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.circuits.expansion import expand, has_experts, has_several_streams, stream_factors
from jaxlin.attribution.circuits.flow import Flow
from jaxlin.attribution.circuits.places import component_numbers, components, part_numbers, places
from jaxlin.attribution.circuits.stream_paths import place_count, taken
from jaxlin.attribution.circuits.token_blocks import TokenBlocks
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST


class Edges(NamedTuple):
    """The edges of a flow network, for all places that a component may have: see `circuits.places`.

    Attributes:
        between: from each writer, the embeddings first, to each reader; also where the reader does not come after the
            writer, so that there is no edge.
        direct: from each writer to the target, past all others.
    """

    between: Float[Array, "a b"]
    direct: Float[Array, " a"]


def edges(model: Decoder, flow: Flow) -> Edges:
    r"""$e(a \to b) = \sum_t r_b[t] \cdot o_a[t]$ for all pairs, and $g \cdot o_a$ with the `direction` $g$."""
    if has_several_streams(model):
        return _through_streams(model, flow)
    tokens, d = flow.embed.shape
    shape, depth = places(model, flow), model.layout.depth
    row_bytes = (1 + depth * (shape.writers + shape.readers)) * d * flow.embed.dtype.itemsize
    blocks = TokenBlocks.of(tokens, row_bytes)
    layers = jax.tree.map(lambda a: blocks.padded(a, 1), flow.layers)
    ends = blocks.padded(flow.embed * stream_factors(model)[0], 0), blocks.padded(flow.direction, 0)
    numbers = blocks.padded(part_numbers(model, tokens, flow.routes), 1, shape.mlp)

    def add_block(total: Edges, start: Array) -> Edges:
        layers_here, numbers_here = blocks.block((layers, numbers), start, 1)
        embed, direction = blocks.block(ends, start, 0)
        writes, reads = expand(model, layers_here)
        writes = jnp.concatenate([embed[None], writes.reshape(-1, *embed.shape)])
        reads = reads.reshape(-1, *embed.shape)
        if not has_experts(model):
            # The target is one more reader. All features of all tokens are one axis: einsum would transpose both.
            reads = jnp.concatenate([reads, direction[None]])
            rows = (each.reshape(len(each), -1) for each in (writes, reads))
            between = jnp.einsum("ai,bi->ab", *rows, precision=HIGHEST)
            return Edges(total.between + between[:, :-1], total.direct + between[:, -1])
        direct = jnp.einsum("atd,td->at", writes, direction, precision=HIGHEST)
        writers, readers = component_numbers(shape, numbers_here)

        def add_token(total: Edges, token: Any) -> tuple[Edges, None]:
            writes, direct, reads, writers, readers = token
            between = jnp.einsum("ad,bd->ab", writes, reads, precision=HIGHEST)
            pairs = writers[:, None], readers[None, :]
            added = total.between.at[pairs].add(between, mode="drop"), total.direct.at[writers].add(direct, mode="drop")
            return Edges(*added), None

        by_token = tuple(jnp.moveaxis(each, 1, 0) for each in (writes, direct, reads, writers, readers))
        return jax.lax.scan(add_token, total, by_token)[0]

    zeros = Edges(
        jnp.zeros((1 + depth * shape.writers, depth * shape.readers), flow.embed.dtype),
        jnp.zeros(1 + depth * shape.writers, flow.embed.dtype),
    )
    return blocks.total(add_block, zeros)


def _through_streams(model: Decoder, flow: Flow) -> Edges:
    """The edges of a model with several streams, of one reader at a time."""
    writes, reads = expand(model, flow.layers)
    writes = jnp.concatenate([flow.embed[None], writes.reshape(-1, *flow.embed.shape)])
    reads = jnp.concatenate([reads.reshape(-1, *flow.embed.shape), flow.direction[None]])
    every, last = components(model, places(model, flow)), place_count(model) - 1
    written_at = jnp.array([each.order for each in every])
    read_at = jnp.array([*(each.reads_at for each in every if each.reads), last])

    def of_reader(reader: tuple[Float[Array, "t d"], Array]) -> Float[Array, " a"]:
        read, place = reader
        return jnp.sum(taken(model, flow.frozen, writes, written_at, read, place), axis=1)

    table = jax.lax.map(of_reader, (reads, read_at))
    return Edges(table[:-1].T, table[-1])
