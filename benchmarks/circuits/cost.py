"""`jaxlin.circuit` against one forward pass, and its memory.

Two forward passes are timed: the model as it runs, with the logits of every position, which the bar is for; and one
with the logits of the last position alone, which is all that the circuit needs, as it reads one target.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

import jaxlin
from benchmarks.floor import forward_products, nbytes, row_products
from benchmarks.long import TARGET, TOKENS
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from benchmarks.timing import Timing, compiled, once, peak
from jaxlin.attribution.circuits.tracing import program

OURS, FORWARD, LAST = "circuit", "forward pass", "forward pass, last logits"
BARRED = 14
"""The most tokens that the bar for the time is for: contracting all pairs of components takes a share that grows."""
RUNS = 3
"""How many times more often than other benchmarks these are run: a call takes less than a second."""


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure time and memory for each length, and once for a long prompt unless the run is quick."""
    for tokens in setting.sizes((BARRED,), (256,)):
        yield from at_length(setting, tokens)
    limit = setting.model.config.max_position_embeddings
    if not setting.quick and (limit is None or limit >= TOKENS):
        yield from long(setting, TOKENS)


def at_length(setting: Setting, tokens: int) -> Iterator[Finding]:
    """Measure them for one length."""
    model, x, size = setting.model, setting.x(tokens), {"tokens": tokens}
    setting.say(f"compiling the circuit of {tokens} tokens")
    target = jnp.asarray(TARGET)
    _, *ours = compiled(lambda m, x: program(m, x, tokens - 1, target, m.rule, False), model, x)
    forward, *of_forward = compiled(lambda m, x: m.unembed(m(x)), model, x)
    last, *of_last = compiled(lambda m, x: m.unembed(m(x)[-1]), model, x)
    first = jaxlin.circuit(model, x, TARGET)
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: jaxlin.circuit(model, x, TARGET).value,
        FORWARD: lambda: forward(model, x),
        LAST: lambda: last(model, x),
    }
    timings, floor_of = setting.timed(calls, RUNS * setting.runs)
    weights, config = nbytes(model.layers), model.config
    logits, once_through = 2 * config.vocab_size * config.hidden_size, forward_products(config, tokens)
    components = len(first.components)
    edges = 2 * components**2 * tokens * config.hidden_size
    floors = {
        OURS: floor_of(once_through + row_products(config, 1, tokens) + edges, 2 * weights),
        FORWARD: floor_of(once_through + tokens * logits, weights),
        LAST: floor_of(once_through + logits, weights),
    }
    figures = {"components": float(components), "defect": first.defect}
    for name, (compiling, temporary) in {OURS: ours, FORWARD: of_forward, LAST: of_last}.items():
        common = {"compile": compiling, "temporary": temporary, "floor": floors[name]}
        yield Row.of("circuits", name, size, timings[name], **common, figures=figures if name == OURS else {})
    key = "circuits, over forward" if tokens <= BARRED else "circuits, over forward at length"
    yield Ratio(key, size, ratio(timings[OURS], timings[FORWARD]))
    yield Ratio("circuits, over last", size, ratio(timings[OURS], timings[LAST]))
    yield Ratio("circuits, memory", size, ours[1] / 2**30)


def long(setting: Setting, tokens: int) -> Iterator[Finding]:
    """Measure one long prompt, whose frozen factors are recomputed; the time includes the compilation."""
    model, x, size = setting.model, setting.repeated(tokens), {"tokens": tokens}
    results: list[Any] = []
    setting.say(f"circuit of {tokens} tokens")
    took, rise = once(lambda: results.append(jaxlin.circuit(model, x, TARGET, remat=True)))
    peak_bytes = peak()
    yield Row.of("circuits", OURS, size, Timing([took], rise), figures={"defect": results[0].defect})
    if peak_bytes is not None:
        yield Ratio("circuits, long", size, peak_bytes / 2**30)
