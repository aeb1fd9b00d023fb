"""The edges of a flow network, from what each component writes and how each reads it, some tokens at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.circuits.expansion import expand, has_experts, stream_factors
from jaxlin.attribution.circuits.flow import Flow
from jaxlin.attribution.circuits.places import component_numbers, part_numbers, places
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST

BLOCK_BYTES = 2**27
"""The most memory for what is expanded at once, in bytes."""


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
    tokens, d = flow.embed.shape
    shape, depth = places(model, flow), model.layout.depth
    row_bytes = (1 + depth * (shape.writers + shape.readers)) * d * flow.embed.dtype.itemsize
    count = -(-tokens // max(1, min(tokens, BLOCK_BYTES // row_bytes)))
    size = -(-tokens // count)
    numbers = part_numbers(model, flow)

    def padded(array: Array, axis: int, value: int = 0) -> Array:
        widths = [(0, count * size - tokens if i == axis else 0) for i in range(array.ndim)]
        return jnp.pad(array, widths, constant_values=value)

    layers = jax.tree.map(lambda a: padded(a, 1), flow.layers)
    ends = padded(flow.embed * stream_factors(model)[0], 0), padded(flow.direction, 0)
    numbers = padded(numbers, 1, shape.mlp)

    def add_block(total: Edges, start: Array) -> tuple[Edges, None]:
        layers_here, numbers_here = _tokens((layers, numbers), start, size, 1)
        embed, direction = _tokens(ends, start, size, 0)
        writes, reads = expand(model, layers_here)
        writes = jnp.concatenate([embed[None], writes.reshape(-1, size, d)])
        reads = reads.reshape(-1, size, d)
        if not has_experts(model):
            # The target is one more reader. All features of all tokens are one axis: einsum would transpose both.
            reads = jnp.concatenate([reads, direction[None]])
            rows = (each.reshape(len(each), -1) for each in (writes, reads))
            between = jnp.einsum("ai,bi->ab", *rows, precision=HIGHEST)
            return Edges(total.between + between[:, :-1], total.direct + between[:, -1]), None
        direct = jnp.einsum("atd,td->at", writes, direction, precision=HIGHEST)
        writers, readers = component_numbers(shape, numbers_here)

        def add_token(total: Edges, token: Any) -> tuple[Edges, None]:
            writes, direct, reads, writers, readers = token
            between = jnp.einsum("ad,bd->ab", writes, reads, precision=HIGHEST)
            pairs = writers[:, None], readers[None, :]
            added = total.between.at[pairs].add(between, mode="drop"), total.direct.at[writers].add(direct, mode="drop")
            return Edges(*added), None

        by_token = tuple(jnp.moveaxis(each, 1, 0) for each in (writes, direct, reads, writers, readers))
        return jax.lax.scan(add_token, total, by_token)[0], None

    zeros = Edges(
        jnp.zeros((1 + depth * shape.writers, depth * shape.readers), flow.embed.dtype),
        jnp.zeros(1 + depth * shape.writers, flow.embed.dtype),
    )
    return jax.lax.scan(add_block, zeros, size * jnp.arange(count))[0]


def _tokens(tree: Any, start: Array, size: int, axis: int) -> Any:
    """The values of `size` tokens."""
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis), tree)
