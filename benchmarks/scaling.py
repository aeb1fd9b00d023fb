r"""How cost grows: exponents fitted to measured times, beside exponents fitted to the operations at the same sizes.

Random Llamas of which one size is changed at a time; for k the small trained model, as random weights have a flat
spectrum. All sizes are timed in turn within each round.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import jaxlin
from benchmarks.dense import shallower
from benchmarks.floor import map_products, nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import TEXT, Setting
from benchmarks.shapes import random_model, tiny
from benchmarks.spectrum import counted
from jaxlin.linearize.operator import LocalMap

WIDTH, LAYERS, TOKENS = 256, 4, 16
AXES: dict[str, tuple[int, ...]] = {"tokens": (8, 16, 32), "width": (128, 256, 512), "depth": (2, 4, 8)}
RANKS = (2, 4, 8, 16)
LONG, TOL = 64, 1e-4
"""The prompt and the tolerance of the Krylov rows."""


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure the dense map over tokens, width and depth, and the Krylov method over k."""
    for axis, sizes in AXES.items():
        yield from _grow(setting, axis, sizes, _dense)
    yield from _grow(setting, "k", RANKS, _krylov)


Case = tuple[Callable[[], Any], int, int]
"""A call to time, its operations, and the bytes that it moves."""


def _grow(setting: Setting, axis: str, sizes: Sequence[int], case: Callable[[str, int], Case]) -> Iterator[Finding]:
    cases = {}
    for size in sizes:
        setting.say(f"scaling with {axis}: {size}")
        cases[size] = case(axis, size)
        jax.block_until_ready(cases[size][0]())
    timings, floor_of = setting.timed({f"{axis} {size}": call for size, (call, _, _) in cases.items()}, setting.runs)
    for size, (_, products, moved) in cases.items():
        taken = timings[f"{axis} {size}"]
        name = "krylov" if axis == "k" else "dense map"
        yield Row.of("scaling", f"{name}, {axis}", {axis: size}, taken, floor=floor_of(products, moved))
    times = [timings[f"{axis} {size}"].median for size in sizes]
    measured = exponent(sizes, times)
    expected = exponent(sizes, [products for _, products, _ in cases.values()])
    yield Ratio(
        "scaling", {"with": axis, "measured": f"{measured:.2f}", "expected": f"{expected:.2f}"}, measured - expected
    )


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    r"""The $p$ of $c \propto n^p$ by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


@functools.cache
def _deepest(width: int) -> jaxlin.Decoder:
    return random_model(tiny(width, max(AXES["depth"])))


def _map(width: int, layers: int, tokens: int) -> LocalMap:
    model = shallower(_deepest(width), layers)
    return jaxlin.local_map(model, model.embed([i % 128 for i in range(tokens)]))


def _dense(axis: str, size: int) -> Case:
    sizes = {"width": WIDTH, "depth": LAYERS, "tokens": TOKENS} | {axis: size}
    lmap = _map(sizes["width"], sizes["depth"], sizes["tokens"])
    moved = nbytes(lmap.model.layers) + 4 * int(np.prod(lmap.shape))
    return lambda: lmap.jacobian(progress=False), map_products(lmap), moved


def _krylov(axis: str, k: int) -> Case:
    model, tokenizer = jaxlin.load()
    lmap = jaxlin.local_map(model, model.embed(tokenizer.encode(TEXT.read_text())[:LONG]))
    _, vectors = counted(lmap, k, TOL)
    products = row_products(lmap.model.config, vectors, LONG)
    return lambda: lmap.svd(k, method="krylov", tol=TOL), products, nbytes(lmap.model.layers)
