"""`jaxlin.attribute` against one forward pass, and against a backward pass of the detached model under PyTorch.

The forward pass is the jitted model to its final norm, at every position, without the unembedding. PyTorch gives the
contributions of the tokens alone; ours are those of layers, heads and neurons too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxlin
from benchmarks.bars import AGREE
from benchmarks.floor import forward_products, nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from benchmarks.timing import compiled
from jaxlin.attribution.components import contributions
from jaxlin.attribution.logit import DEFAULT_NEURONS

OURS, FORWARD, TORCH = "attribute", "forward pass", "torch backward pass"
RUNS = 2
"""How many times more often than other benchmarks these are run: a call takes milliseconds."""


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure them for each length."""
    for tokens in setting.sizes((8,), (128, 512)):
        yield from at_length(setting, tokens)


def at_length(setting: Setting, tokens: int) -> Iterator[Finding]:
    """Measure them for one length.

    Raises:
        JaxlinError: PyTorch gives other contributions.
    """
    model, x, size = setting.model, setting.x(tokens), {"tokens": tokens}
    target = int(model.unembed(model(x)[-1]).argmax())
    setting.say(f"compiling the attribution of {tokens} tokens")
    _, compiling, temporary = compiled(
        lambda model, x: contributions(model, x, tokens - 1, jnp.array(target), model.rule, DEFAULT_NEURONS), model, x
    )
    forward, *costs = compiled(lambda model, x: model(x), model, x)
    first = jaxlin.attribute(model, x, target)
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: jaxlin.attribute(model, x, target).value,
        FORWARD: lambda: forward(model, x),
    }
    gap = 0.0
    if setting.peer is not None:
        calls[TORCH] = _torch(setting, x, target)
        gap = float(np.abs(np.asarray(calls[TORCH]()) - first.tokens).max() / np.abs(first.tokens).max())
        if not gap <= AGREE:
            raise jaxlin.JaxlinError(f"{TORCH}: expected our contributions within {AGREE:g}; found {gap:g}.")
    timings, floor_of = setting.timed(calls, RUNS * setting.runs)
    weights, once = nbytes(model.layers), forward_products(model.config, tokens)
    both = once + row_products(model.config, 1, tokens)
    figures = {"defect": first.defect, "component defect": first.component_defect}
    common = {"compile": compiling, "temporary": temporary, "floor": floor_of(both, 2 * weights), "figures": figures}
    yield Row.of("attribution", OURS, size, timings[OURS], **common)
    yield Row.of(
        *("attribution", FORWARD, size, timings[FORWARD]),
        compile=costs[0],
        temporary=costs[1],
        floor=floor_of(once, weights),
    )
    yield Ratio("attribution, over forward", size, ratio(timings[OURS], timings[FORWARD]))
    if setting.peer is not None:
        floor = floor_of(both, 2 * sum(p.nbytes for p in setting.peer.layers.parameters()))
        figures = {"difference": gap}
        yield Row.of("attribution", TORCH, size, timings[TORCH], ours=False, floor=floor, figures=figures)
        yield Ratio("attribution, over PyTorch", size, ratio(timings[TORCH], timings[OURS]))


def _torch(setting: Setting, x: jax.Array, target: int) -> Callable[[], Any]:
    import torch

    from benchmarks import peer

    model = setting.model
    head = model.embed_tokens.weight if model.unembedding.weight is None else model.unembedding.weight
    direction = torch.tensor(np.asarray(head[target], np.float32))
    inputs = torch.tensor(np.asarray(x))
    return lambda: peer.backward(setting.peer, inputs, direction)
