"""What the causal checks share: how many passes go together, slopes in all values, and how they are compared."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.biases import without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks

BATCH = 8
"""Prompts whose forward passes are in memory together."""


def slopes(
    model: Decoder,
    held: FrozenFactors,
    kind: str,
    values: Float[Array, "l t *v"],
    direction: Float[Array, "t d"],
) -> Float[Array, "l t *v"]:
    """The slopes of what `direction` reads after the blocks, in the value at each layer and position of the held model.

    Args:
        model: the decoder.
        held: what is held.
        kind: of the values: a kind of site, or ``"heads"`` or ``"neurons"``.
        values: of the shape of the result; they are not read.
        direction: of the stream after the blocks.
    """
    bare = without_biases(model)

    def through(stream: Array, probes: Array) -> Array:
        def make_context(row: Any) -> Context:
            return Context(Replay(row[0], held.rule), Hooks(probes={kind: row[1]}))

        return bare.scan(stream, make_context, (held.layers, probes))[0]

    # Of the stream too, which does not matter: a function that adds a constant, even zero, has no transpose.
    return jax.linear_transpose(through, direction, values)(direction)[1]


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; not a number where either is constant."""
    ranks = [np.searchsorted(np.sort(v), v) + np.searchsorted(np.sort(v), v, side="right") for v in (a, b)]
    centred = [r - r.mean() if len(r) else r for r in ranks]
    scale = np.sqrt(np.sum(centred[0] ** 2) * np.sum(centred[1] ** 2))
    return float(np.sum(centred[0] * centred[1]) / scale) if scale else float("nan")
