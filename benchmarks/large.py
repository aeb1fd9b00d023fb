"""A model that does not fit in memory, from a few of its layers: the time and memory of one, times their number.

The layers have the shapes and the format of the checkpoint, with random weights. Work that is done once (the last layer
at one position, the dispatch) is the same with few layers and with more, so one layer costs their difference divided by
the number of layers between them. The method is checked on a model that fits with all of its layers.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxlin
from benchmarks.dense import shallower
from benchmarks.floor import nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Clock, Setting
from benchmarks.shapes import LLAMA_70B, NF4, random_model
from benchmarks.timing import Timing, compiled
from jaxlin.linearize.operator import LocalMap
from jaxlin.loading.plan import memory_plan

FEWER, MORE = 4, 12
"""The two numbers of layers that are measured. Loops over one or two layers are unrolled, and the further apart the two
numbers are, the less noise is in the difference."""
TOKENS, ROWS = 8, 64
"""The length of the prompt, and the rows that are computed together, enough to repay unpacking a layer."""
NAME = "Llama-3.3-70B, NF4"
CHECKED: dict[str, Any] = {
    **LLAMA_70B, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 64, "quantization_config": NF4,
}  # fmt: skip
"""Layers of an eighth of that width, of which all fit in memory."""
VOCABULARY = 256
"""Embeddings are no part of a layer, and two matrices of the real size would fill the memory."""


class _Cost(NamedTuple):
    """The cost of some layers: times of recording and of a block of rows, and bytes of what they keep in memory."""

    recording: Timing
    rows: Timing
    weights: int
    frozen: int
    temporary: int


def measure(setting: Setting) -> Iterator[Finding]:
    """Check the method, then measure the large model; a quick run leaves both out."""
    if setting.quick:
        yield "large: all layers from a few is left out of a quick run"
        return
    yield from check(setting)
    yield from extrapolate(setting)


def check(clock: Clock, config: Mapping[str, Any] = CHECKED) -> Iterator[Finding]:
    """Compare the measured cost of all layers with the cost extrapolated from a few."""
    depth = config["num_hidden_layers"]
    model = random_model({**config, "vocab_size": VOCABULARY})
    costs, floor_of = _costs(clock, model, (FEWER, MORE, depth))
    size = {"layers": depth, "tokens": TOKENS, "rows": ROWS}
    predicted, cost = _extrapolated(costs, depth), costs[depth]
    floor = floor_of(row_products(model.config, ROWS, TOKENS), cost.weights)
    yield Row.of("large", "a block of rows, all layers", size, cost.rows, temporary=cost.temporary, floor=floor)
    measured = {
        "rows": cost.rows.median,
        "recording": cost.recording.median,
        "memory": cost.weights + cost.frozen + cost.temporary,
    }
    for name, value in measured.items():
        yield Ratio(f"large, {name}", size, abs(predicted[name] / value - 1))


def extrapolate(clock: Clock, config: Mapping[str, Any] = LLAMA_70B, name: str = NAME) -> Iterator[Finding]:
    """Measure a few layers of a model, and extrapolate to all of them."""
    config = {**config, "quantization_config": NF4}
    depth, d = config["num_hidden_layers"], config["hidden_size"]
    model = random_model({**config, "num_hidden_layers": MORE, "vocab_size": VOCABULARY})
    costs, floor_of = _costs(clock, model, (FEWER, MORE))
    predicted, size = _extrapolated(costs, depth), {"model": name, "tokens": TOKENS, "rows": ROWS}
    for layers, cost in costs.items():
        yield Row.of(
            *("large", f"a block of rows, {layers} layers", size, cost.rows),
            temporary=cost.temporary,
            floor=floor_of(row_products(model.config, ROWS, TOKENS, layers), cost.weights),
            figures={"recording, s": cost.recording.median, "weights, GB": cost.weights / 1e9},
        )
    plan = memory_plan(config, tokens=TOKENS, block=ROWS)
    embeddings = plan.weights - depth * costs[FEWER].weights // FEWER
    memory, hours = predicted["memory"] + embeddings, predicted["rows"] * d / ROWS / 3600
    yield (
        f"large: {name}, all {depth} layers on this device, from these: weights {plan.weights / 1e9:.1f} GB; recording "
        f"{predicted['recording']:.0f} s; a block of {ROWS} rows {predicted['rows']:.0f} s; the dense map {hours:.1f} "
        f"hours; in memory at most {memory / 1e9:.1f} GB, where the memory plan says {plan.operator / 1e9:.1f} GB."
    )


def _costs(clock: Clock, model: jaxlin.Decoder, depths: tuple[int, ...]) -> tuple[dict[int, _Cost], Any]:
    """The costs of the first layers of a model, for each number of them in `depths`, timed in turn."""
    u = jax.random.normal(jax.random.key(0), (ROWS, model.config.hidden_size), jnp.float32)
    calls, sizes = {}, {}
    for depth in depths:
        clock.say(f"{depth} layers of width {model.config.hidden_size}")
        cut = shallower(model, depth)
        x = cut.embed([i % VOCABULARY for i in range(TOKENS)])
        lmap = jaxlin.local_map(cut, x)
        program, _, temporary = compiled(LocalMap.rmatvec, lmap, u)
        calls[f"recording, {depth}"] = lambda cut=cut, x=x: jaxlin.local_map(cut, x)
        calls[f"rows, {depth}"] = lambda program=program, lmap=lmap: program(lmap, u)
        sizes[depth] = (nbytes(cut.layers), nbytes(lmap.frozen), temporary)
    timings, floor_of = clock.timed(calls)
    costs = {
        depth: _Cost(timings[f"recording, {depth}"], timings[f"rows, {depth}"], *size) for depth, size in sizes.items()
    }
    return costs, floor_of


def _extrapolated(costs: Mapping[int, _Cost], depth: int) -> dict[str, float]:
    """Seconds of recording and of a block of rows, and bytes, of `depth` layers."""
    fewer, more = costs[FEWER], costs[MORE]

    def line(a: float, b: float) -> float:
        return a + (depth - FEWER) * (b - a) / (MORE - FEWER)

    return {
        "recording": line(fewer.recording.median, more.recording.median),
        "rows": line(fewer.rows.median, more.rows.median),
        "memory": line(fewer.weights, more.weights) + line(fewer.frozen, more.frozen) + more.temporary,
    }
