"""Rows of a map through experts, of the width of OLMoE with a few of its layers and random weights.

The floor is the time of the products of the chosen experts and of attention alone, at the rate of a product of an
expert's shape. Temporary memory is compared with that of dense layers as wide as the chosen
experts together.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import jaxlin
from benchmarks.floor import Floor, nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Clock, Setting
from benchmarks.shapes import random_model
from benchmarks.timing import compiled
from jaxlin.linearize.operator import LocalMap

TOKENS, LAYERS, FEW = 8, 2, 64
"""The length of the prompt, the layers, and a number of rows for which it does not pay to multiply the matrices of the
experts of a token together first. All rows are measured too, for which it does."""
VOCABULARY = 256
"""Embeddings are no part of a layer, and those of the real size would fill the memory."""
OLMOE: dict[str, Any] = {
    "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": LAYERS,
    "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
    "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
TIMES = 16
"""How often the products of an expert's shape are repeated."""


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure the rows, unless the run is quick."""
    if setting.quick:
        yield "experts: a layer of the width of OLMoE is left out of a quick run"
        return
    yield from rows(setting)


def rows(clock: Clock, config: Mapping[str, Any] = OLMOE, tokens: int = TOKENS) -> Iterator[Finding]:
    """Measure rows of the map of a mixture of experts, and their temporary memory beside that of dense layers."""
    d, f, k = (config[key] for key in ("hidden_size", "intermediate_size", "num_experts_per_tok"))
    clock.say("drawing the experts")
    model = random_model(dict(config))
    temporary = {}
    for count in (FEW, d):
        call, temporary[count] = _block_of_rows(model, tokens, count)
        timings, floor_of = clock.timed({"rows": call, "products": products_of_shape(count, d, f)})
        rate = 2 * 2 * TIMES * count * d * f / timings["products"].median
        moved = nbytes(model.layers) * k // config["num_experts"]
        floor = Floor(row_products(model.config, count, tokens), moved, rate, floor_of(0, 0).bandwidth)
        size = {"tokens": tokens, "rows": count, "layers": config["num_hidden_layers"]}
        row = Row.of("experts", "rows", size, timings["rows"], temporary=temporary[count], floor=floor)
        yield row
        yield Ratio("experts, of floor", size, floor.seconds / row.median)
    del model

    clock.say("dense layers as wide")
    left_out = ("num_experts", "num_experts_per_tok")
    dense = {key: value for key, value in config.items() if key not in left_out}
    dense_model = random_model({**dense, "model_type": "olmo2", "intermediate_size": k * f})
    for count, taken in temporary.items():
        size = {"tokens": tokens, "rows": count, "layers": config["num_hidden_layers"]}
        yield Ratio("experts, memory", size, taken / _block_of_rows(dense_model, tokens, count)[1])


def _block_of_rows(model: jaxlin.Decoder, tokens: int, rows: int) -> tuple[Callable[[], Any], int]:
    """A call that computes a block of rows of the map, and its temporary memory."""
    lmap = jaxlin.local_map(model, model.embed([(7 * i) % model.config.vocab_size for i in range(tokens)]))
    u = jax.random.normal(jax.random.key(0), (rows, lmap.shape[0]), lmap.output.dtype)
    program, _, temporary = compiled(LocalMap.rmatvec, lmap, u)
    return lambda: program(lmap, u), temporary


def products_of_shape(rows: int, d: int, f: int) -> Callable[[], Any]:
    """Products of vectors with a matrix ``[f, d]``, and of the results with one back, `TIMES` times.

    The matrices stay in the cache, and the vectors are others each time, `rows` of them.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    x, up, down = (
        jax.random.normal(key, shape) for key, shape in zip(keys, ((TIMES, rows, d), (f, d), (d, f)), strict=True)
    )

    @jax.jit
    def multiply(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        def through(y: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            hidden = jnp.matmul(x, up.T, precision="highest")
            return y + jnp.matmul(hidden, down.T, precision="highest"), None

        return jax.lax.scan(through, jnp.zeros_like(x[0]), x)[0]

    multiply(x, up, down).block_until_ready()
    return lambda: multiply(x, up, down)
