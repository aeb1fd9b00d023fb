"""The top singular values: products until their bounds hold, against all rows of the map, whose SVD is not counted."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import jaxlin
from benchmarks.floor import map_products, nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from jaxlin.linearize.linalg.lanczos import krylov_svd
from jaxlin.linearize.linalg.triplets import SVD, svd
from jaxlin.linearize.operator import LocalMap

K, TOL = 8, 1e-4
BAR_TOKENS = 256
"""The length of the prompt that the bar is for."""
LONG = 64
"""The length of the prompt from which on each call is timed once, because the dense map takes long."""


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure both ways for each length."""
    for tokens in setting.sizes((8,), (64, 256, 1024)):
        yield from at_length(setting, tokens)


def at_length(setting: Setting, tokens: int, k: int = K, tol: float = TOL) -> Iterator[Finding]:
    """Measure both ways for one length."""
    model, size = setting.model, {"tokens": tokens, "k": k}
    lmap = jaxlin.local_map(model, setting.x(tokens))
    setting.say(f"krylov of {tokens} tokens: a first run")
    triplets, vectors = counted(lmap, k, tol)
    jax.block_until_ready(lmap.rmatvec(np.zeros((lmap.default_block, lmap.shape[0]), lmap.output.dtype)))
    jacobians: list[Any] = []

    def dense() -> None:
        jacobians[:] = [jax.block_until_ready(lmap.jacobian(progress=False))]

    calls = {"dense map": dense, "krylov": lambda: lmap.svd(k, method="krylov", tol=tol)}
    timings, floor_of = setting.timed(calls, 1 if tokens >= LONG else None)
    exact = svd(np.asarray(jacobians.pop())).s[:k]
    assert triplets.bound is not None
    figures = {
        "products": float(vectors),
        "largest bound": float(np.max(triplets.bound / triplets.s)),
        "largest error": float(np.max(np.abs(triplets.s - exact) / exact)),
    }
    config, weights = model.config, nbytes(model.layers)
    floor = floor_of(map_products(lmap), weights + 4 * int(np.prod(lmap.shape)))
    yield Row.of("spectrum", "dense map", size, timings["dense map"], floor=floor)
    least = floor_of(row_products(config, vectors, tokens), weights)
    yield Row.of("spectrum", "krylov", size, timings["krylov"], floor=least, figures=figures)
    key = "krylov, over dense at 256" if tokens == BAR_TOKENS else "krylov, over dense"
    yield Ratio(key, size, ratio(timings["krylov"], timings["dense map"]))


def counted(lmap: LocalMap, k: int, tol: float) -> tuple[SVD, int]:
    """The triplets of the Krylov method, and how many vectors it sends through the map and its transpose."""
    count = 0

    def counting(product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(v: Any) -> Any:
            nonlocal count
            count += len(v)
            return product(v)

        return call

    products = counting(lmap.matvec), counting(lmap.rmatvec)
    triplets = krylov_svd(*products, lmap.shape, lmap.output.dtype, k, tol=tol, like=lmap.x)
    return triplets, count
