"""The dense map against its floor: ``python -m benchmarks.dense_map CHECKPOINT``.

The floor is the time of every row of J through the transposes of the value, output, up and down projections at every
position, at the rate of a 4096 x 4096 product measured in the same run. A map whose MLPs are folded takes fewer
operations than that; how many is printed. Runs of the two are interleaved, and what is quoted is the median.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxlin
from jaxlin.local_map import LocalMap

SIDE = 4096


def seconds(call: Callable[[], Any]) -> float:
    """How long `call` takes until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def products(lmap: LocalMap) -> int:
    """The floating-point operations of the floor."""
    config, (rows, tokens, d) = lmap.model.config, lmap.shape
    values = config.num_key_value_heads * config.head_dim
    outputs = config.num_attention_heads * config.head_dim
    weights = d * values + outputs * d + 2 * d * config.intermediate_size
    return 2 * rows * tokens * config.num_hidden_layers * weights


def folded_products(lmap: LocalMap) -> int:
    """The same where each MLP is folded into one matrix at each position, see `jaxlin.layers.folded`."""
    config, (rows, tokens, d) = lmap.model.config, lmap.shape
    f = config.intermediate_size
    saved = 2 * rows * d * f - d * d * f - rows * d * d
    return products(lmap) - 2 * tokens * config.num_hidden_layers * saved


def temporary_bytes(lmap: LocalMap, rows: int) -> int:
    """The temporary memory of the compiled program of a block of rows."""
    u = jax.ShapeDtypeStruct((rows, lmap.shape[0]), lmap.output.dtype)
    analysis: Any = jax.jit(LocalMap.rmatvec).lower(lmap, u).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def shallower(model: jaxlin.Decoder, layers: int) -> jaxlin.Decoder:
    """`model` with its first `layers` blocks only."""
    import copy
    import dataclasses

    config = model.config
    cut = copy.copy(model)
    cut.config = dataclasses.replace(
        config, num_hidden_layers=layers, ropes=config.ropes[:layers], windows=config.windows[:layers]
    )
    cut.layers = jax.tree.map(lambda a: a[:layers], model.layers)
    return cut


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a hub id, directory or .gguf file; the small model if absent")
    parser.add_argument("--text", default="The bridge out of Marin is the")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    model, tokenizer = jaxlin.load(args.checkpoint)
    x = model.embed(tokenizer.encode(args.text))
    lmap = jaxlin.local_map(model, x)
    u = jax.ShapeDtypeStruct((lmap.default_block, lmap.shape[0]), lmap.output.dtype)
    compiling = seconds(lambda: jax.jit(LocalMap.rmatvec).lower(lmap, u).compile())
    lmap.jacobian(progress=False)
    square = jnp.ones((SIDE, SIDE))
    multiply = jax.jit(lambda a: a @ a)
    multiply(square).block_until_ready()
    runs, rates = [], []
    for _ in range(args.runs):
        rates.append(2 * SIDE**3 / seconds(lambda: multiply(square)))
        runs.append(seconds(lambda: lmap.jacobian(progress=False)))
    run, floor = statistics.median(runs), products(lmap) / statistics.median(rates)
    depth = model.config.num_hidden_layers
    quarter = jaxlin.local_map(shallower(model, max(1, depth // 4)), x)
    print(f"device             {jax.devices()[0].device_kind}, {x.shape[0]} tokens, {lmap.output.dtype}")
    print(f"matmul rate        {statistics.median(rates) / 1e9:.0f} GFLOP/s ({SIDE} x {SIDE})")
    print(f"floor              {floor:.3f} s")
    print(f"dense map          {run:.3f} s   {run / floor:.3f} x the floor")
    print(f"products folded    {folded_products(lmap) / products(lmap):.3f} of those of the floor")
    print(f"compilation        {compiling:.2f} s")
    print(f"residual           {lmap.residual_of(lmap.jacobian(progress=False)):.1e}")
    whole, part = (temporary_bytes(lmap, lmap.default_block) / 2**20 for lmap in (lmap, quarter))
    print(f"temporary memory   {whole:.1f} MiB at {depth} layers, {part:.1f} MiB at {max(1, depth // 4)}; ", end="")
    print(f"blocks of {lmap.default_block} rows")


if __name__ == "__main__":
    main()
