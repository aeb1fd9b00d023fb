"""Shapes of large models with random weights on one accelerator: dense map, attribution and spectrum against the floor.

Weights are bfloat16, or 4 bits for the largest; what is computed is float32: its products are as exact as float32.
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
from benchmarks.shapes import LARGE, LLAMA_70B, NF4, UNLIKE, random_model
from benchmarks.spectrum import TOL, K, counted
from benchmarks.timing import compiled
from jaxlin.linearize.linalg.lanczos import default_width
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.linearize.operator import LocalMap

TOKENS = {"dense map": 8, "precision": 8, "attribution": 2048, "spectrum": 512}
OF_UNLIKE = {"dense map": 8, "attribution": 2048}
PACKED = {"Llama-3.3-70B, NF4": {**LLAMA_70B, "quantization_config": NF4}}
OF_PACKED = {"rows": 8, "attribution": 2048}
"""For a large model in 4 bits one block of rows is measured: all rows of its map would take minutes."""


def measure(clock: Clock) -> Iterator[Finding]:
    """Every task for the shapes of `LARGE`, some for a hybrid and a mixture, and those of `OF_PACKED` in 4 bits."""
    yield from each(clock, LARGE, TOKENS)
    yield from each(clock, UNLIKE, OF_UNLIKE)
    yield from each(clock, PACKED, OF_PACKED)


def each(clock: Clock, shapes: Mapping[str, dict[str, Any]], tokens: Mapping[str, int]) -> Iterator[Finding]:
    """Measure each task for each shape, and precisions for the first shape alone.

    A task that runs out of memory is noted and left out.

    Args:
        clock: times the calls.
        shapes: the config.json of each model, by name.
        tokens: the length of the prompt of each task, by name.
    """
    first = next(iter(shapes))
    for name, config in shapes.items():
        clock.say(f"{name}: drawing the weights")
        model = random_model(config)
        for task, length in tokens.items():
            if task == "precision" and name != first:
                continue
            clock.say(f"{name}: {task} of {length} tokens")
            try:
                yield from TASKS[task](clock, name, model, length)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                yield f"gpu: {name}, {task} of {length} tokens: out of memory"
        del model
    if most := (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
        yield f"gpu: at most {most / 1e9:.1f} GB of the device's memory were in use up to here, {', '.join(shapes)}"


def _dense(clock: Clock, name: str, model: jaxlin.Decoder, tokens: int) -> Iterator[Finding]:
    x = _prompt(model, tokens)
    recording = compiled(lambda model, x: jaxlin.local_map(model, x), model, x)
    lmap = jaxlin.local_map(model, x)
    u = jax.ShapeDtypeStruct((lmap.default_block, lmap.shape[0]), lmap.output.dtype)
    rows = compiled(LocalMap.rmatvec, lmap, u)
    figures = {"residual": lmap.residual_of(lmap.jacobian(progress=False))}
    calls = {"dense map": lambda: jaxlin.local_map(model, x).jacobian(progress=False)}
    size = {"model": name, "tokens": tokens, "rows together": lmap.default_block}
    timings, floor_of = clock.timed(calls)
    blocks = -(-lmap.shape[0] // lmap.default_block)
    products = map_products(lmap) + forward_products(model.config, tokens)
    floor = floor_of(products, (1 + blocks) * nbytes(model.layers) + 4 * lmap.shape[0] * lmap.x.size)
    yield Row.of(
        *("gpu", "dense map", size, timings["dense map"]),
        compile=recording[1] + rows[1],
        temporary=max(recording[2], rows[2]),
        floor=floor,
        figures=figures,
    )
    yield Ratio("gpu, of floor", size, floor.seconds / timings["dense map"].median)


def _rows(clock: Clock, name: str, model: jaxlin.Decoder, tokens: int) -> Iterator[Finding]:
    lmap = jaxlin.local_map(model, _prompt(model, tokens))
    rows, blocks = lmap.default_block, -(-lmap.shape[0] // lmap.default_block)
    u = jax.random.normal(jax.random.key(0), (rows, lmap.shape[0]), lmap.output.dtype)
    program, compile, temporary = compiled(LocalMap.rmatvec, lmap, u)
    size = {"model": name, "tokens": tokens, "rows": rows}
    timings, floor_of = clock.timed({"rows": lambda: program(lmap, u)})
    floor = floor_of(row_products(model.config, rows, tokens), nbytes(model.layers) + 4 * rows * lmap.x.size)
    row = Row.of("gpu", "a block of rows", size, timings["rows"], compile=compile, temporary=temporary, floor=floor)
    yield row
    yield f"gpu: {name}, all rows at {tokens} tokens are {blocks} such blocks: {blocks * row.median / 60:.1f} minutes"


def _precision(clock: Clock, name: str, model: jaxlin.Decoder, tokens: int) -> Iterator[Finding]:
    yield from precision.measure_map(clock, model, _prompt(model, tokens), {"model": name, "tokens": tokens})


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
    block = min(K, default_width(tokens))
    zeros = np.zeros((block, *lmap.x.shape), np.float32)
    jax.block_until_ready((lmap.matvec(zeros), lmap.rmatvec(zeros[:, 0])))  # they compile
    runs: list[tuple[SVD, int]] = []
    timings, floor_of = clock.timed({"krylov": lambda: runs.append(counted(lmap, K, TOL))}, 1)
    triplets, vectors = runs.pop()
    assert triplets.bound is not None
    floor = floor_of(row_products(model.config, vectors, tokens), nbytes(model.layers))
    figures = {"products": float(vectors), "largest bound": float(np.max(triplets.bound / triplets.s))}
    size = {"model": name, "tokens": tokens, "k": K}
    yield Row.of("gpu", "krylov", size, timings["krylov"], floor=floor, figures=figures)


TASKS: dict[str, Callable[[Clock, str, jaxlin.Decoder, int], Iterator[Finding]]] = {
    "dense map": _dense,
    "rows": _rows,
    "precision": _precision,
    "attribution": _attribution,
    "spectrum": _spectrum,
}


def _prompt(model: jaxlin.Decoder, tokens: int) -> jax.Array:
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, tokens)
    return model.embed(ids.tolist())
