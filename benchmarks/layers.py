"""All layers' maps to the output: one backward sweep against a Jacobian for each layer."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import jaxlin
from benchmarks.bars import AGREE
from benchmarks.floor import map_products, nbytes
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from jaxlin.sites import Place

TOKENS = 8
SWEEP, EACH, ONE = "one sweep", "a Jacobian for each layer", "the map from the embeddings"


def measure(setting: Setting) -> Iterator[Finding]:
    """The sweep, a map for each layer, and one dense map.

    Raises:
        JaxlinError: they do not give the same maps.
    """
    model, x = setting.model, setting.x(TOKENS)
    depth, size = model.config.num_hidden_layers, {"tokens": TOKENS}
    whole = jaxlin.local_map(model, x)
    held = whole.coefficients
    # Rows need what is held and where they start, and not the stream there: one recording serves all.
    lmaps = [replace(whole, source=Place(layer)) for layer in range(depth)]
    setting.say("a first sweep")
    swept = np.asarray(jaxlin.layer_maps(model, held)["resid_pre"])
    for layer, lmap in enumerate(lmaps):
        setting.say(f"a first Jacobian, layer {layer}")
        single = np.asarray(lmap.jacobian(progress=False))
        gap = np.abs(single - swept[layer]).max() / np.abs(single).max()
        if not gap <= AGREE:
            raise jaxlin.JaxlinError(f"Layer {layer}: expected the same map within {AGREE:g}; found {gap:g}.")
    calls = {
        SWEEP: lambda: jaxlin.layer_maps(model, held),
        EACH: lambda: [lmap.jacobian(progress=False) for lmap in lmaps],
        ONE: lambda: lmaps[0].jacobian(progress=False),
    }
    timings, floor_of = setting.timed(calls, 1 if setting.quick else None)
    weights, one = nbytes(model.layers), swept[0].nbytes
    products = [map_products(lmaps[0], above) for above in range(1, depth + 1)]
    floors = {
        SWEEP: floor_of(products[-1], weights + depth * one),
        EACH: floor_of(sum(products), depth * (weights / 2 + one)),
        ONE: floor_of(products[-1], weights + one),
    }
    for name, timing in timings.items():
        yield Row.of("layers", name, size, timing, floor=floors[name])
    yield Ratio("layers, over one", size, ratio(timings[SWEEP], timings[ONE]))
    yield Ratio("layers, over each", size, ratio(timings[EACH], timings[SWEEP]))
