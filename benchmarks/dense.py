"""The dense map: ours, plain JAX over the linearized model, and PyTorch over the detached one.

Each call starts from the embeddings and ends with all of J, the forward pass included.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import jaxlin
from benchmarks.bars import AGREE
from benchmarks.floor import folded_products, forward_products, nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from benchmarks.timing import compiled
from jaxlin.local_map import LocalMap

OURS = "rows by transpose"
VECTORIZED, FUNCTIONAL = "torch jacobian(vectorize=True)", "torch.func.jacrev"
COLUMNS = 2**30
"""Bytes of one hidden activation over all columns up to which `jacfwd` is tried: it takes all together."""


def measure(setting: Setting) -> Iterator[Finding]:
    """All ways for each length."""
    for tokens in setting.sizes((8,), (32, 128)):
        yield from at(setting, tokens)


def at(setting: Setting, tokens: int) -> Iterator[Finding]:
    """All ways for one length.

    Raises:
        JaxlinError: two of them do not give the same map.
    """
    model, x = setting.model, setting.x(tokens)
    config, size = model.config, {"tokens": tokens}
    lmap = jaxlin.local_map(model, x)
    setting.say(f"compiling the rows of {tokens} tokens")
    _, compiling, temporary = compiled(LocalMap.rmatvec, lmap, _block(lmap))
    calls: dict[str, Callable[[], Any]] = {OURS: lambda: jaxlin.local_map(model, x).jacobian(progress=False)}
    expected = np.asarray(calls[OURS]())
    programs = {OURS: (compiling, temporary)}
    for name, (call, *costs) in _plain(setting, x).items():
        calls[name], programs[name] = call, tuple(costs)
    calls |= _torch(setting, tokens)
    gaps = {name: _difference(expected, setting, name, call) for name, call in calls.items() if name != OURS}
    timings, floor_of = setting.timed(calls)

    d = config.hidden_size
    products = row_products(config, d, tokens) + forward_products(config, tokens)
    moved = nbytes(model.layers) + expected.nbytes
    for name, timing in timings.items():
        compiling, temporary = programs.get(name, (None, None))
        columns = tokens if name == "jacfwd" else 1
        figures = {"residual": lmap.residual_of(expected)} if name == OURS else {"difference": gaps[name]}
        yield Row.of(
            *("dense", name, size, timing),
            ours=name not in (VECTORIZED, FUNCTIONAL),
            compile=compiling,
            temporary=temporary,
            floor=floor_of(columns * products, moved),
            figures=figures,
        )
    ours = timings[OURS]
    yield Ratio("dense, of floor", size, floor_of(products, moved).seconds / ours.median)
    left = folded_products(config, d, tokens) + forward_products(config, tokens)
    yield Ratio("dense, of folded floor", size, floor_of(left, moved).seconds / ours.median)
    if VECTORIZED in timings:
        fastest = min(timings[name].median for name in (VECTORIZED, FUNCTIONAL))
        yield Ratio("dense, over PyTorch", size, fastest / ours.median)
        yield Ratio("dense, over vectorize", size, ratio(timings[VECTORIZED], ours))
    for name in ("jacrev", "jacfwd"):
        if name in timings:
            yield Ratio(f"dense, over {name}", size, ratio(timings[name], ours))
        else:
            yield f"dense, {tokens} tokens: {name} left out; all its columns together do not fit in memory"
    yield Ratio("dense, compile", size, programs[OURS][0])
    yield Ratio("dense, depth", size, temporary_by_depth(model, x))


def _block(lmap: LocalMap) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((lmap.default_block, lmap.shape[0]), lmap.output.dtype)


def _plain(setting: Setting, x: jax.Array) -> dict[str, tuple[Callable[[], Any], float, int]]:
    """`jacrev` and `jacfwd` of the linearized model, compiled: the call, its compilation and temporary memory."""
    model = copy.copy(setting.model)
    model.linearize = True
    found = {}
    for transform in (jax.jacrev, jax.jacfwd):
        name = transform.__name__
        if name == "jacfwd" and 4 * x.size * x.shape[0] * model.config.intermediate_size > COLUMNS:
            continue
        setting.say(f"compiling {name} of {x.shape[0]} tokens")
        program, took, temporary = compiled(transform(lambda model, x: model(x)[-1], argnums=1), model, x)
        found[name] = (functools.partial(program, model, x), took, temporary)
    return found


def _torch(setting: Setting, tokens: int) -> dict[str, Callable[[], Any]]:
    if setting.peer is None:
        return {}
    import torch

    from benchmarks import peer

    x = torch.tensor(np.asarray(setting.x(tokens)))
    return {
        VECTORIZED: lambda: peer.vectorized(setting.peer, x),
        FUNCTIONAL: lambda: peer.jacrev(setting.peer, x),
    }


def _difference(expected: np.ndarray, setting: Setting, name: str, call: Callable[[], Any]) -> float:
    setting.say(f"{name}: a first call")
    found = float(np.abs(np.asarray(call()) - expected).max() / np.abs(expected).max())
    if not found <= AGREE:
        raise jaxlin.JaxlinError(f"{name}: expected the map within {AGREE:g} of ours; found a difference of {found:g}.")
    return found


def temporary_by_depth(model: jaxlin.Decoder, x: jax.Array) -> float:
    """The temporary memory of a block of rows at full depth over that at a quarter of it."""
    # Not to one block: the top one is needed at one position alone.
    parts = [model, shallower(model, max(2, model.config.num_hidden_layers // 4))]
    lmaps = [jaxlin.local_map(part, x) for part in parts]
    whole, part = (compiled(LocalMap.rmatvec, lmap, _block(lmap))[2] for lmap in lmaps)
    return whole / part


def shallower(model: jaxlin.Decoder, layers: int) -> jaxlin.Decoder:
    """`model` with its first `layers` blocks only."""
    config = model.config
    cut = copy.copy(model)
    cut.config = dataclasses.replace(
        config, num_hidden_layers=layers, ropes=config.ropes[:layers], windows=config.windows[:layers]
    )
    cut.layers = jax.tree.map(lambda a: a[:layers], model.layers)
    return cut
