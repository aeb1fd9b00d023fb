"""The dense map: ours, plain JAX over the linearized model, and PyTorch over the detached one.

Each call starts from the embeddings and ends with all of J, the forward pass included. The one exception is `RECORDED`,
which takes the rows of a map whose factors are recorded already: it is compared with the floor of the transposes.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

import jaxlin
from benchmarks.bars import AGREE
from benchmarks.floor import forward_products, map_products, nbytes, row_products, square_product
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from benchmarks.timing import compiled, interleaved
from jaxlin.linearize.operator import LocalMap

OURS = "rows by transpose"
RECORDED = "rows by transpose, once recorded"
VECTORIZED, FUNCTIONAL = "torch jacobian(vectorize=True)", "torch.func.jacrev"
OTHERS = ("jacrev", "jacfwd", VECTORIZED, FUNCTIONAL)
COLUMNS = 2**30
"""Bytes of one hidden activation over all columns up to which `jacfwd`, which takes all columns together, is run."""

DEEP = 12
"""The least number of layers of which a quarter is still compiled as a loop."""


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure all ways for each length."""
    if setting.peer is not None:
        yield _rates(setting)
    slow = setting.quick and setting.checkpoint is not None
    for tokens in setting.sizes((8,), (32, 128)):
        yield from at_length(setting, tokens, [name for name in OTHERS if not (slow and name == "jacfwd")])


def at_length(setting: Setting, tokens: int, others: Collection[str] = OTHERS) -> Iterator[Finding]:
    """Measure our way and `others` for one length.

    Raises:
        JaxlinError: another way does not give our map.
    """
    model, x = setting.model, setting.x(tokens)
    config, size = model.config, {"tokens": tokens}
    setting.say(f"compiling the map of {tokens} tokens")
    recording = compiled(lambda model, x: jaxlin.local_map(model, x), model, x)
    lmap = jaxlin.local_map(model, x)
    rows = compiled(LocalMap.rmatvec, lmap, _block(lmap))
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: jaxlin.local_map(model, x).jacobian(progress=False),
        RECORDED: lambda: lmap.jacobian(progress=False),
    }
    expected = np.asarray(calls[OURS]())
    programs: dict[str, tuple[float, float]] = {
        OURS: (recording[1] + rows[1], max(recording[2], rows[2])),
        RECORDED: (rows[1], rows[2]),
    }
    for name, (call, *costs) in _plain(setting, x, others).items():
        calls[name], programs[name] = call, (costs[0], costs[1])
    calls |= _torch(setting, tokens, others)
    gaps = {name: _difference(expected, setting, name, call) for name, call in calls.items() if name in OTHERS}
    timings, floor_of = setting.timed(calls)

    d = config.hidden_size
    forward, plain = forward_products(config, tokens), row_products(config, d, tokens)
    own = {OURS: map_products(lmap) + forward, RECORDED: map_products(lmap)}
    moved = nbytes(model.layers) + expected.nbytes
    for name, timing in timings.items():
        compiling, temporary = programs.get(name, (None, None))
        columns = tokens if name == "jacfwd" else 1
        figures = {"difference": gaps[name]} if name in gaps else {"residual": lmap.residual_of(expected)}
        yield Row.of(
            *("dense", name, size, timing),
            ours=name in own,
            compile=compiling,
            temporary=temporary,
            floor=floor_of(own.get(name, columns * (plain + forward)), moved),
            figures=figures,
        )
    ours = timings[OURS]
    yield Ratio("dense, of floor", size, floor_of(plain, moved).seconds / timings[RECORDED].median)
    if theirs := [timings[name].median for name in (VECTORIZED, FUNCTIONAL) if name in timings]:
        yield Ratio("dense, over PyTorch", size, min(theirs) / ours.median)
    keys = {VECTORIZED: "vectorize", "jacrev": "jacrev", "jacfwd": "jacfwd"}
    for name, key in keys.items():
        if name in timings:
            yield Ratio(f"dense, over {key}", size, ratio(timings[name], ours))
        elif name == "jacfwd" and name in others:
            yield f"dense, {tokens} tokens: {name} left out; all its columns together do not fit in memory"
    yield Ratio("dense, compile", size, programs[OURS][0])
    if config.num_hidden_layers >= DEEP:
        setting.say("compiling a quarter of the layers")
        quarter = jaxlin.local_map(shallower(model, config.num_hidden_layers // 4), x)
        yield Ratio("dense, depth", size, rows[2] / compiled(LocalMap.rmatvec, quarter, _block(quarter))[2])


def _rates(setting: Setting) -> str:
    """How fast JAX and PyTorch multiply, on which all of these depend."""
    import torch

    side = setting.side
    square = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
    calls = {"JAX": square_product(side), "PyTorch": lambda: torch.matmul(square, square)}
    taken = interleaved(setting.runs, calls)
    rates = " and ".join(f"{2e-9 * side**3 / taken[name].median:.0f} GFLOP/s in {name}" for name in calls)
    return f"dense: a {side} x {side} product of float32 matrices runs at {rates}"


def _block(lmap: LocalMap) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((lmap.default_block, lmap.shape[0]), lmap.output.dtype)


def _plain(setting: Setting, x: jax.Array, names: Collection[str]) -> dict[str, tuple[Callable[[], Any], float, int]]:
    """`jacrev` and `jacfwd` of the linearized model: the compiled call, seconds to compile it, and temporary memory."""
    model = copy.copy(setting.model)
    model.linearize = True
    programs = {}
    for transform in (jax.jacrev, jax.jacfwd):
        name = transform.__name__
        activation = 4 * x.size * x.shape[0] * model.config.intermediate_size
        if name not in names or (name == "jacfwd" and activation > COLUMNS):
            continue
        setting.say(f"compiling {name} of {x.shape[0]} tokens")
        program, took, temporary = compiled(transform(lambda model, x: model(x)[-1], argnums=1), model, x)
        programs[name] = (functools.partial(program, model, x), took, temporary)
    return programs


def _torch(setting: Setting, tokens: int, names: Collection[str]) -> dict[str, Callable[[], Any]]:
    if not {VECTORIZED, FUNCTIONAL} & set(names) or setting.peer is None:
        return {}
    import torch

    from benchmarks import peer

    x = torch.tensor(np.asarray(setting.x(tokens)))
    ways = {VECTORIZED: peer.vectorized, FUNCTIONAL: peer.jacrev}
    return {name: functools.partial(way, setting.peer, x) for name, way in ways.items() if name in names}


def _difference(expected: np.ndarray, setting: Setting, name: str, call: Callable[[], Any]) -> float:
    setting.say(f"{name}: a first call")
    gap = float(np.abs(np.asarray(call()) - expected).max() / np.abs(expected).max())
    if not gap <= AGREE:
        raise jaxlin.JaxlinError(f"{name}: expected the map within {AGREE:g} of ours; found a difference of {gap:g}.")
    return gap


def shallower(model: jaxlin.Decoder, layers: int) -> jaxlin.Decoder:
    """`model` with its first `layers` blocks alone."""
    config = model.config
    cut = copy.copy(model)
    cut.config = dataclasses.replace(
        config, num_hidden_layers=layers, ropes=config.ropes[:layers], windows=config.windows[:layers]
    )
    cut.layers = jax.tree.map(lambda a: a[:layers], model.layers)
    return cut
