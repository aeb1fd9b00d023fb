"""How the queries and keys of a head read the stream, with their norms frozen."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.circuits.token_blocks import TokenBlocks
from jaxlin.nn.biases import biases_of, has_biases, with_biases, without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.freeze_modes import Detach
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.stack import LayerIndex


class Head(NamedTuple):
    """A head at a prompt, and where it looks.

    Attributes:
        number: its number in the layer.
        heads: the number of heads of the layer.
        queries: the layer, in which queries read the stream.
        keys: the layer in which keys read the stream: the same, unless those of an earlier one are shared.
        query: the position of the query.
        weights: those of the keys, ``[t]``.
    """

    number: Any
    heads: int
    queries: "ScoreLayer"
    keys: "ScoreLayer"
    query: Any
    weights: Any

    def padded(self, blocks: TokenBlocks) -> "Head":
        """The head at a padded prompt, whose last keys have no weight."""
        pad = functools.partial(blocks.padded, axis=0)
        schedule = self.keys.schedule
        positions, first_visible = pad(schedule.positions), pad(schedule.first_visible)
        schedule = schedule._replace(positions=positions, first_visible=first_visible)
        keys = self.keys._replace(stream=pad(self.keys.stream), schedule=schedule)
        return self._replace(keys=keys, weights=pad(self.weights))

    def query_reader(self) -> "Reader":
        """How the query reads the stream at its position."""
        return self.queries.reader(self.query, 1, lambda q, k: q[:, self.number])

    def key_reader(self, start: Any, size: int) -> "Reader":
        """How the keys of some tokens, times their weights, read the stream."""
        reader = self.keys.reader(start, size, lambda q, k: k[:, self.number * k.shape[1] // self.heads])
        weights = jax.lax.dynamic_slice_in_dim(self.weights, start, size)
        return Reader(reader.rows * weights[None, :, None], reader.biases * weights[:, None])


class ScoreLayer(NamedTuple):
    """A layer at a prompt.

    Attributes:
        where: the layer.
        block: its block.
        stream: the stream that its attention reads, ``[t, d]``.
        schedule: the schedule of the block.
        factor: that of the stream on its way to the last block.
    """

    where: LayerIndex
    block: Any
    stream: Any
    schedule: Schedule
    factor: Any

    def reader(self, start: Any, size: int, one: Callable[[Array, Array], Array]) -> "Reader":
        """How one of the queries and keys of some tokens, that `one` takes, reads the stream."""

        def some(array: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(array, start, size)

        stream, schedule = some(self.stream), self.schedule
        schedule = schedule._replace(positions=some(schedule.positions), first_visible=some(schedule.first_visible))
        bare, biases = without_biases(self.block), biases_of(self.block)

        def vectors(biases: Any, stream: Float[Array, "s d"]) -> Float[Array, "s k"]:
            return one(*with_biases(bare, biases).read_scores(stream, schedule, Context(Detach())))

        values, pull = jax.vjp(functools.partial(vectors, biases), stream)
        # A vector depends on the stream of its own token alone, so that one product gives the rows of all.
        units = jnp.eye(values.shape[1], dtype=values.dtype)
        rows = jax.vmap(lambda unit: pull(jnp.broadcast_to(unit[None], values.shape))[0])(units)
        if not has_biases(self.block):
            return Reader(rows, jnp.zeros_like(values))
        return Reader(rows, jax.jvp(lambda biases: vectors(biases, stream), (biases,), (biases,))[1])


class Reader(NamedTuple):
    """Queries, or keys, of some tokens as affine functions of the stream.

    Attributes:
        rows: the gradient of each feature in the stream of each token.
        biases: what the biases of the block contribute.
    """

    rows: Float[Array, "k s d"]
    biases: Float[Array, "s k"]
