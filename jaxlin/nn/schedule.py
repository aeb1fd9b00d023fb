"""The schedule of a block: the settings that differ from layer to layer, and the positions of the tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.nn.config import Config
from jaxlin.nn.stack import Layout, Stack


class Schedule(NamedTuple):
    """An input of a block besides the stream and the context. That of a model has all layers stacked.

    Attributes:
        inv_freq: the rotary frequencies, radians a token; zeros rotate nothing.
        rope_scale: the factor of cosine and sine.
        positions: the position of each token.
        first_visible: the first key that the query of each token sees; the last is its own.
    """

    inv_freq: Float[Array, " r"]
    rope_scale: Float[Array, ""]
    positions: Int[Array, " t"]
    first_visible: Int[Array, " t"]


def schedules(config: Config, layout: Layout, tokens: int, positions: Int[Array, " t"], dtype: str) -> Schedule | Stack:
    """The schedules of all layers for a prompt of `tokens`, of which those at `positions` are at hand."""
    wide = jnp.promote_types(dtype, jnp.float32)
    inv_freq, scale = zip(*(rope.frequencies(tokens) for rope in config.ropes), strict=True)
    frequencies = jax.tree.map(lambda a: jnp.asarray(a, wide), layout.stacked(inv_freq))
    first = config.first_visible(positions)
    positions = jnp.broadcast_to(positions[None], first.shape)
    return layout.map(Schedule, frequencies, jnp.asarray(scale, wide), positions, first)


def moved(config: Config, layout: Layout, schedule: Schedule | Stack, positions: Int[Array, " t"]) -> Schedule | Stack:
    """`schedule` for tokens at other positions of the same text."""
    first = config.first_visible(positions)
    positions = jnp.broadcast_to(positions[None], first.shape)

    def at_positions(part: Schedule, positions: Array, first: Array) -> Schedule:
        return part._replace(positions=positions, first_visible=first)

    return layout.map(at_positions, schedule, positions, first)


def same_frequencies(ropes: Sequence[Any], tokens: int, others: int) -> bool:
    """Whether prompts of both lengths have the same rotary frequencies: of some ropes they depend on the length."""
    pairs = [(rope.frequencies(tokens), rope.frequencies(others)) for rope in ropes]
    return all(np.array_equal(a, b) and a_scale == b_scale for (a, a_scale), (b, b_scale) in pairs)
