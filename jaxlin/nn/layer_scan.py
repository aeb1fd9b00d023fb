"""The scan over the layers of a model: one compiled loop for each segment of layers (`jaxlin.nn.stack`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlin.nn.block_input import BlockInput, linear_zeros
from jaxlin.nn.stack import Layout, layer_of
from jaxlin.quantized import mixed


def scan_layers(
    layout: Layout, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stacks: Any, start: int, stop: int
) -> tuple[Any, Any]:
    """Run the layers from `start` to before `stop`, one scan a run, and collect a value of each.

    Every step is under `jax.checkpoint`. Without it, partial evaluation hoists what does not depend on the linear input
    (every widened weight, every attention pattern) out of the transposed scan, and stores it for all layers at once.

    Args:
        layout: the segments of the layers.
        step: from the carry and the values of a layer in `stacks`, the next carry and the value to collect.
        carry: that of the first step.
        stacks: a pytree of stacks over all layers.
        start: the first layer.
        stop: the layer after the last.

    Returns:
        The last carry, and the collected values, `Layout.joined`; None if there are no layers.
    """
    collected = []
    for run in layout.runs(start, stop):
        places = [layout.stacks(stacks, run.segment, place) for place in run.places]
        carry, values = _scan_run(step, carry, places, run.repeats, layout.segments[run.segment].repeats)
        collected.append(values)
    return carry, layout.between(start, stop).joined(collected) if collected else None


def values_before(
    sharing_layers: Sequence[int], kinds: int, run: Callable[..., Any], inputs: BlockInput, stacks: Any
) -> Any:
    """The values that blocks share, with zeros in the place of those that no block has written before the scan begins.

    Args:
        sharing_layers: the layers whose blocks write such values, in order.
        kinds: how many kinds of values they write.
        run: from what enters a layer and its values in `stacks`, what enters the next one, and its context.
        inputs: what enters the first layer.
        stacks: a pytree of stacks over all layers.
    """
    if len(inputs.shared) == kinds:
        return inputs.shared
    shapes: Any = inputs.shared
    for layer in sharing_layers:
        before = inputs._replace(shared=shapes)
        shapes = jax.eval_shape(lambda *arguments: run(*arguments)[0].shared, before, layer_of(stacks, layer))
    zeros = jax.tree.map(lambda a: linear_zeros(inputs.stream, a.shape, a.dtype), shapes)
    return {**zeros, **inputs.shared}


def _scan_run(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, places: Sequence[Any], repeats: range, count: int
) -> tuple[Any, tuple[Any, ...]]:
    """Run some of the `count` repeats of a period, whose places have these stacks."""
    every = len(repeats) == count
    parts = [mixed.split_for_scan(stacks) for stacks in places]

    def step_at(place: int) -> Callable[[Any, Any], tuple[Any, Any]]:
        # To slice a stack before the scan would copy the weights of its layers; to index it here does not.
        def run(carry: Any, row: Any) -> tuple[Any, Any]:
            return step(carry, parts[place][1](row[place]) if every else mixed.layer_of(places[place], row))

        return jax.checkpoint(run, prevent_cse=False)

    steps = [step_at(place) for place in range(len(places))]

    def body(carry: Any, row: Any) -> tuple[Any, tuple[Any, ...]]:
        collected = []
        for step in steps:
            carry, value = step(carry, row)
            collected.append(value)
        return carry, tuple(collected)

    scanned = tuple(part for part, _ in parts) if every else jnp.arange(repeats.start, repeats.stop)
    return jax.lax.scan(body, carry, scanned)
