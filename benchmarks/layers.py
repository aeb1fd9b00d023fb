"""All layers' maps to the output: one backward sweep against a Jacobian for each layer."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import jaxlin
from benchmarks.bars import AGREE
from benchmarks.floor import map_products, nbytes
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from jaxlin.nn.sites import Place

EVERY = 10
"""A quick run takes one in so many layers of a deep model by itself: each is a program of its own to compile."""
SWEEP, EACH, ONE = "one sweep", "a Jacobian for each layer", "the map from the embeddings"


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure them for each length."""
    for tokens in setting.sizes((8,)):
        yield from at_length(setting, tokens)


def at_length(setting: Setting, tokens: int) -> Iterator[Finding]:
    """Measure the sweep, a map for each layer, and one dense map, for one length.

    Raises:
        JaxlinError: the sweep and the single maps differ.
    """
    model, x = setting.model, setting.x(tokens)
    depth, size = model.config.num_hidden_layers, {"tokens": tokens}
    embedding_map = jaxlin.local_map(model, x)
    frozen = embedding_map.frozen
    # The rows of a map need the frozen factors and its source, not the stream at the source: one recording serves all.
    layers = range(0, depth, EVERY if setting.quick and depth >= 2 * EVERY else 1)
    lmaps = {layer: replace(embedding_map, source=Place(layer)) for layer in layers}
    each = EACH if len(layers) == depth else f"a Jacobian for {len(layers)} of {depth} layers"
    setting.say("a first sweep")
    swept = np.asarray(jaxlin.layer_maps(model, frozen)["resid_pre"])
    for layer, lmap in lmaps.items():
        setting.say(f"a first Jacobian, layer {layer}")
        single = np.asarray(lmap.jacobian(progress=False))
        gap = np.abs(single - swept[layer]).max() / np.abs(single).max()
        if not gap <= AGREE:
            raise jaxlin.JaxlinError(f"Layer {layer}: expected the same map within {AGREE:g}; found {gap:g}.")
    calls = {
        SWEEP: lambda: jaxlin.layer_maps(model, frozen),
        each: lambda: [lmap.jacobian(progress=False) for lmap in lmaps.values()],
        ONE: lambda: lmaps[0].jacobian(progress=False),
    }
    timings, floor_of = setting.timed(calls, 1 if setting.quick else None)
    weights, one = nbytes(model.layers), swept[0].nbytes
    products = [map_products(embedding_map, depth - layer) for layer in layers]
    floors = {
        SWEEP: floor_of(products[0], weights + depth * one),
        each: floor_of(sum(products), len(layers) * (weights / 2 + one)),
        ONE: floor_of(products[0], weights + one),
    }
    for name, timing in timings.items():
        yield Row.of("layers", name, size, timing, floor=floors[name])
    yield Ratio("layers, over one", size, ratio(timings[SWEEP], timings[ONE]))
    if EACH in timings:
        yield Ratio("layers, over each", size, ratio(timings[EACH], timings[SWEEP]))
