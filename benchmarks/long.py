"""A long prompt on this machine: the time and memory of an attribution and of the leading singular values.

Attention is computed in blocks, see `jaxlin.nn.blockwise`. Each is run once, and its time includes the compilation,
which is a small part.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jaxlin
from benchmarks.floor import forward_products, nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting
from benchmarks.spectrum import counted
from benchmarks.timing import Timing, once, peak

TOKENS, K, TOL = 4096, 4, 1e-2
TARGET = 1


def measure(setting: Setting, tokens: int = TOKENS) -> Iterator[Finding]:
    """Measure both, unless the run is quick or the prompt is longer than the context of the model."""
    limit = setting.model.config.max_position_embeddings
    if setting.quick or (limit is not None and limit < tokens):
        reason = "a quick run" if setting.quick else f"a model for {limit}"
        yield f"long: {tokens} tokens are left out of {reason}"
        return
    yield from at_length(setting, tokens)


def at_length(setting: Setting, tokens: int) -> Iterator[Finding]:
    """Measure both for one length."""
    model, x, size = setting.model, setting.repeated(tokens), {"tokens": tokens}
    results: dict[str, Any] = {}

    def attribution() -> None:
        results["attribution"] = jaxlin.attribute(model, x, TARGET)

    def spectrum() -> None:
        results["spectrum"] = counted(jaxlin.local_map(model, x), K, TOL)

    _, floor_of = setting.timed({})
    forward, weights = forward_products(model.config, tokens), nbytes(model.layers)
    calls: dict[str, Callable[[], None]] = {"attribution": attribution, "spectrum": spectrum}
    for name, call in calls.items():
        setting.say(f"{name} of {tokens} tokens")
        took, rise = once(call)
        peak_bytes = peak()
        if name == "attribution":
            title, vectors = name, 1
            figures = {"defect": results[name].defect, "component defect": results[name].component_defect}
        else:
            triplets, vectors = results[name]
            title = f"top {K} singular values"
            figures = {f"sigma {i}": float(s) for i, s in enumerate(triplets.s, start=1)}
            figures |= {"bound": float(max(triplets.bound / triplets.s)), "products": float(vectors)}
        floor = floor_of(forward + row_products(model.config, vectors, tokens), 2 * weights)
        yield Row.of("long", title, size, Timing([took], rise), floor=floor, figures=figures)
        if peak_bytes is not None:
            yield Ratio("long, memory", {**size, "of": title}, peak_bytes / 2**30)
