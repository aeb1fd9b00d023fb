"""Products with packed weights, unpacked layer by layer in the loop, against the same products with float32 weights."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.floor import nbytes
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Clock, ratio
from benchmarks.timing import compiled
from jaxlin.quantized import Affine, BFloat16, FourBit, GGUFBlocks, Int8, MixedStack, NestedScales, PackedMatrix, Scaled
from jaxlin.quantized.codes import part_rows
from jaxlin.quantized.gguf import LAYOUTS
from jaxlin.quantized.mixed import split_for_scan

LAYERS, SIDE, VECTORS = 8, 2048, 8
"""So many square matrices of this side, each times so few vectors that reading the weights takes longest."""
DENSE = "float32"


def measure(clock: Clock, side: int = SIDE) -> Iterator[Finding]:
    """Measure all formats."""
    x = jnp.ones((side, VECTORS))
    calls, programs, size = {}, {}, {"layers": LAYERS, "side": side, "vectors": VECTORS}
    for name, weights in stacks(side).items():
        clock.say(f"compiling a product with {name}")
        program, *costs = compiled(products, weights, x)
        program(weights, x).block_until_ready()
        calls[name] = functools.partial(program, weights, x)
        programs[name] = (nbytes(weights), *costs)
    timings, floor_of = clock.timed(calls)
    for name, timing in timings.items():
        stored_bytes, compiling, temporary = programs[name]
        figures = {
            "bits a weight": 8 * stored_bytes / (LAYERS * side**2),
            "weights a second": LAYERS * side**2 / timing.median,
        }
        yield Row.of(
            *("packed", name, size, timing),
            compile=compiling,
            temporary=temporary,
            floor=floor_of(2 * LAYERS * side**2 * VECTORS, stored_bytes),
            figures=figures,
        )
    for name, timing in timings.items():
        if name != DENSE:
            yield Ratio("packed, over float32", {"format": name}, ratio(timing, timings[DENSE]))


def products(weights: Any, x: Float[Array, "i b"]) -> Float[Array, "o b"]:
    """The sum over the matrices of a stack of their products with `x`."""
    riding, layer = split_for_scan(weights)

    def body(y: Array, row: Any) -> tuple[Array, None]:
        return y + jnp.matmul(layer(row)[...].astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST), None

    return jax.lax.scan(body, jnp.zeros_like(x), riding)[0]


def stacks(side: int) -> dict[str, Array | PackedMatrix]:
    """Random square matrices in each format; scales are such that all values are finite."""
    random = np.random.default_rng(0)

    def codes(shape: tuple[int, ...], dtype: Any = np.uint8) -> Array:
        """From 0 to 59: two of them in a row are a float16 below one."""
        return jnp.asarray(random.integers(0, 60, (LAYERS, *shape)).astype(dtype))

    def floats(*shape: int) -> Array:
        return jnp.asarray(random.random((LAYERS, *shape), np.float32))

    def of_form(form: Any) -> Any:
        return jax.tree.map(lambda array: codes(array.shape, array.dtype), form)

    def gptq(*, ordered: bool) -> Affine:
        form = Affine.abstract((side, side), 128, 4, np.float16, ordered=ordered)
        drawn = of_form(form)
        return drawn if ordered else dataclasses.replace(drawn, group=drawn.group % (side // 128))

    four, blocks, square = (part_rows(side, 4), side), (side, side // 64), (side, side)
    rows = jnp.broadcast_to(jnp.arange(side, dtype=jnp.int32), (LAYERS, side))
    nested = NestedScales(floats(-(-side * side // 64 // 256)), floats(256), floats(), rows)
    return {
        DENSE: floats(*square),
        "bfloat16": BFloat16(jax.lax.bitcast_convert_type(floats(*square).astype(jnp.bfloat16), jnp.uint16)),
        "FP8, blocks of 128": Scaled(codes(square), floats(side // 128, side // 128), (128, 128), "float8_e4m3fn"),
        "int8": Int8(codes(square, np.int8), floats(side)),
        "NF4": FourBit(codes(four), floats(*blocks), floats(16), None, "bfloat16"),
        "NF4, nested": FourBit(codes(four), codes(blocks), floats(16), nested, "bfloat16"),
        "GPTQ or AWQ": gptq(ordered=True),
        "GPTQ, reordered": gptq(ordered=False),
        **{kind: of_form(GGUFBlocks.abstract((side, side), kind)) for kind in LAYOUTS},
        "Q4_K and Q6_K": alternating([of_form(GGUFBlocks.abstract((side, side), kind)) for kind in ("Q4_K", "Q6_K")]),
    }


def alternating(stacks: list[PackedMatrix]) -> MixedStack:
    """A stack whose layers alternate between formats."""
    half = tuple(jax.tree.map(lambda array: array[: LAYERS // len(stacks)], stack) for stack in stacks)
    layers = jnp.arange(LAYERS, dtype=jnp.int32)
    return MixedStack(half, layers % len(stacks), layers // len(stacks))
