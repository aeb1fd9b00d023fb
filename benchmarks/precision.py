"""Each precision that `jaxlin.load` takes: how long the dense map takes, and how exact it is."""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax

import jaxlin
from benchmarks.floor import map_products, nbytes, square_product
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Clock, Setting
from jaxlin.nn.precision import PRECISIONS, Precision, matmul_precision


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure all precisions for each length."""
    for tokens in setting.sizes((8,)):
        yield from measure_map(
            setting, setting.model, setting.x(tokens), {"tokens": tokens}, 1 if setting.quick else None
        )


def measure_map(
    clock: Clock, model: jaxlin.Decoder, x: jax.Array, size: Mapping[str, int | str], runs: int | None = None
) -> Iterator[Finding]:
    """Measure the dense map at `x` in each precision, with its own floor.

    Precisions that a device does not tell apart are one row.
    """
    alike: dict[str, list[Precision]] = {}
    for precision in PRECISIONS:
        alike.setdefault(matmul_precision(precision, model.dtype), []).append(precision)
    calls, residuals = {}, {}
    for algorithm, names in alike.items():
        clock.say(f"the map in precision {names[0]}")
        lmap = jaxlin.local_map(_in_precision(model, names[0]), x)
        residuals[algorithm] = lmap.residual_of(lmap.jacobian(progress=False))
        calls[algorithm] = lambda lmap=lmap: lmap.jacobian(progress=False)
    squares = {f"a product, {algorithm}": square_product(clock.side, algorithm) for algorithm in alike}
    timings, floor_of = clock.timed({**calls, **squares}, runs)
    own = jaxlin.local_map(model, x)
    floor = floor_of(map_products(own), nbytes(model.layers) + 4 * math.prod(own.shape))
    for algorithm, square in zip(alike, squares, strict=True):
        rate = 2 * clock.side**3 / timings[square].median
        yield Row.of(
            *("precision", ", ".join(alike[algorithm]), size, timings[algorithm]),
            floor=dataclasses.replace(floor, rate=rate),
            figures={"residual": residuals[algorithm], "products a second": rate},
        )
    yield Ratio("precision, residual", size, residuals[matmul_precision(model.precision, model.dtype)])


def _in_precision(model: jaxlin.Decoder, precision: Precision) -> jaxlin.Decoder:
    other = copy.copy(model)
    other.precision = precision
    return other
