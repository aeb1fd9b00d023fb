"""Shapes of large models with random weights on one accelerator: dense map, attribution and spectrum against the floor.

Weights are bfloat16, what is computed is float32: its products are as exact as float32.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import jaxlin
from benchmarks import precision
from benchmarks.floor import forward_products, map_products, nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Clock, ratio
from benchmarks.shapes import LARGE, random_model
from benchmarks.spectrum import counted
from benchmarks.timing import compiled
from jaxlin.local_map import LocalMap

TOKENS = {"dense map": 8, "precision": 8, "attribution": 2048, "spectrum": 512}
K, TOL = 8, 1e-2
"""The tolerance is loose because the spectrum of random weights is flat."""


def measure(
    clock: Clock, shapes: Mapping[str, dict[str, Any]] = LARGE, tokens: Mapping[str, int] = TOKENS
) -> Iterator[Finding]:
    """Each task for each shape; what does not fit in memory is noted and left out.

    Args:
        clock: what times.
        shapes: the config.json of each model.
        tokens: the length of the prompt of each task.
    """
    for name, said in shapes.items():
        clock.say(f"{name}: drawing the weights")
        model = random_model(said)
        for task, length in tokens.items():
            clock.say(f"{name}: {task} of {length} tokens")
            try:
                yield from TASKS[task](clock, name, model, length)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                yield f"gpu: {name}, {task} of {length} tokens: out of memory"
        del model


def _dense(clock: Clock, name: str, model: jaxlin.Decoder, tokens: int) -> Iterator[Finding]:
    lmap = jaxlin.local_map(model, _prompt(model, tokens))
    u = jax.ShapeDtypeStruct((lmap.default_block, lmap.shape[0]), lmap.output.dtype)
    _, compiling, temporary = compiled(LocalMap.rmatvec, lmap, u)
    figures = {"residual": lmap.residual_of(lmap.jacobian(progress=False))}
    size, rows = {"model": name, "tokens": tokens}, lmap.shape[0]
    timings, floor_of = clock.timed({"dense map": lambda: lmap.jacobian(progress=False)})
    blocks = -(-rows // lmap.default_block)
    floor = floor_of(map_products(lmap), blocks * nbytes(model.layers) + 4 * rows * lmap.x.size)
    yield Row.of(
        *("gpu", "dense map", size, timings["dense map"]),
        compile=compiling,
        temporary=temporary,
        floor=floor,
        figures=figures,
    )
    yield Ratio("gpu, of floor", size, floor.seconds / timings["dense map"].median)


def _precision(clock: Clock, name: str, model: jaxlin.Decoder, tokens: int) -> Iterator[Finding]:
    yield from precision.at(clock, model, _prompt(model, tokens), {"model": name, "tokens": tokens}, 1)


def _attribution(clock: Clock, name: str, model: jaxlin.Decoder, tokens: int) -> Iterator[Finding]:
    x = _prompt(model, tokens)
    size, target = {"model": name, "tokens": tokens}, 1
    first = jaxlin.attribute(model, x, target)
    forward, *_ = compiled(lambda model, x: model(x), model, x)
    timings, floor_of = clock.timed(
        {"attribution": lambda: jaxlin.attribute(model, x, target).value, "forward pass": lambda: forward(model, x)}
    )
    weights, once = nbytes(model.layers), forward_products(model.config, tokens)
    both = floor_of(once + row_products(model.config, 1, tokens), 2 * weights)
    figures = {"defect": first.defect, "component defect": first.component_defect}
    yield Row.of("gpu", "attribution", size, timings["attribution"], floor=both, figures=figures)
    yield Row.of("gpu", "forward pass", size, timings["forward pass"], floor=floor_of(once, weights))
    yield Ratio("attribution, over forward", size, ratio(timings["attribution"], timings["forward pass"]))


def _spectrum(clock: Clock, name: str, model: jaxlin.Decoder, tokens: int) -> Iterator[Finding]:
    lmap = jaxlin.local_map(model, _prompt(model, tokens))
    size = {"model": name, "tokens": tokens, "k": K}
    _, vectors = counted(lmap, K, TOL)  # it compiles both ways
    timings, floor_of = clock.timed({"krylov": lambda: lmap.svd(K, method="krylov", tol=TOL)}, 1)
    floor = floor_of(row_products(model.config, vectors, tokens), nbytes(model.layers))
    yield Row.of("gpu", "krylov", size, timings["krylov"], floor=floor, figures={"products": float(vectors)})


TASKS: dict[str, Callable[[Clock, str, jaxlin.Decoder, int], Iterator[Finding]]] = {
    "dense map": _dense,
    "precision": _precision,
    "attribution": _attribution,
    "spectrum": _spectrum,
}


def _prompt(model: jaxlin.Decoder, tokens: int) -> jax.Array:
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, tokens)
    return model.embed(ids.tolist())
