"""One task of the comparison: scores, curves of faithfulness and of completeness, and single ablations.

The scores of a method are averaged over the pairs of prompts, and the edges with the largest absolute means are left in
the ordinary model, with the other prompt's values along all others. Faithfulness is $(m - m') / (m_0 - m')$ of the mean
values, with those of the untouched model and of the other prompts.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.circuits.runs import direction, read_components, top_components, top_edges
from benchmarks.circuits.scores import METHODS, scores
from benchmarks.circuits.tasks import pairs
from jaxlin.causal.edges import every_component, intact, possible_edges, read_each
from jaxlin.causal.effects import spearman
from jaxlin.causal.own_streams import writes
from jaxlin.nn.decoder import Decoder
from jaxlin.tokenizer import Tokenizer

WITHIN = (100, 300, 1000, 3000, 10000)
"""How many edges a circuit has, of the 44,371 of SmolLM2."""
WITHOUT = (100, 1000)
"""After how many edges are cut the rest is measured."""
VALUES = (300, 3000)
"""How many edges, where heads read values alone along them."""
RANDOM, PATCHING = "random", "patching"
RANDOM_COUNTS = (1000, 10000)
COMPONENTS = (10, 30, 100, 200)
PATCHED, SAMPLED = 2, 16
"""The pairs whose single ablations are measured; the edges drawn of all, and those of the union of the largest."""
UNION = 300
SEED = 0


def compare(model: Decoder, tokenizer: Tokenizer, task: str, count: int) -> dict[str, Any]:
    """All measurements of one task, for JSON."""
    drawn = pairs(task, tokenizer, count, SEED)
    bar = tqdm(total=4 * count, desc=task, unit="pair", file=sys.stderr)

    def ids(words: tuple[str, ...]) -> jax.Array:
        return jnp.array([tokenizer.to_single_token(word) for word in words])

    prompts = [
        (*(model.embed(tokenizer.encode(text)) for text in (pair.text, pair.other)),
         direction(model, ids(pair.right), ids(pair.wrong)))
        for pair in drawn
    ]  # fmt: skip

    def of_each(function: Any) -> list[Any]:
        results = []
        for prompt in prompts:
            results.append(jax.device_get(function(*prompt)))
            bar.update()
        return results

    possible = possible_edges(every_component(model))
    by_pair = [
        {name: np.where(possible, score, 0) for name, score in each.items()}
        for each in of_each(lambda x, other, target: scores(model, x, other, target))
    ]
    mean = {name: np.mean([each[name] for each in by_pair], axis=0) for name in METHODS}
    chance = np.random.default_rng(SEED).random(possible.shape)
    curves = [(name, n) for name in METHODS for n in WITHIN] + [(RANDOM, n) for n in RANDOM_COUNTS]
    edges = {key: top_edges({**mean, RANDOM: chance}[key[0]], possible, key[1]) for key in curves}
    cut = {(name, n): possible & ~edges[name, n] for name in METHODS for n in WITHOUT}
    ends = [possible, np.zeros_like(possible)]
    stacked = _stacked(model, [*ends, *edges.values(), *cut.values()])
    along = {(name, n): edges[name, n] for name in METHODS for n in VALUES}
    of_values = _stacked(model, list(along.values()))

    def curve(x: Any, other: Any, target: Any) -> Any:
        return read_each(model, x, _written(model, other)[0], stacked, target)

    def value_curve(x: Any, other: Any, target: Any) -> Any:
        return read_each(model, x, _written(model, other)[0], of_values, target, _written(model, x)[1])

    each = np.array(of_each(curve), np.float64)
    values = np.mean(each, axis=0)
    clean, corrupt = values[:2]
    within, without = np.split((values[2:] - corrupt) / (clean - corrupt), [len(edges)])
    by_values = (np.mean(of_each(value_curve), axis=0) - corrupt) / (clean - corrupt)
    singles = _single_ablations(model, prompts, by_pair, mean, possible, each[:, 0])
    nodes = {name: score.sum(axis=1) for name, score in mean.items()}
    nodes[PATCHING] = np.mean(singles.pop("effects"), axis=0)
    node_runs = {(name, n): top_components(nodes[name], n) for name in nodes for n in COMPONENTS}
    masks = jnp.array(list(node_runs.values()))
    node_values = np.mean(of_each(lambda x, o, t: read_components(model, x, o, masks, t)), axis=0)
    bar.close()
    return {
        "task": task,
        "pairs": count,
        "tokens": len(prompts[0][0]),
        "example": [drawn[0].text, drawn[0].other, drawn[0].right, drawn[0].wrong],
        "seed": SEED,
        "able": float(np.mean(each[:, 0] > 0)),
        "clean": float(clean),
        "other": float(corrupt),
        "edges": int(possible.sum()),
        "within": _by_method(dict(zip(edges, within, strict=True))),
        "without": _by_method(dict(zip(cut, without, strict=True))),
        "values": _by_method(dict(zip(along, by_values, strict=True))),
        "components": _by_method(dict(zip(node_runs, (node_values - corrupt) / (clean - corrupt), strict=True))),
        **singles,
    }


def _single_ablations(
    model: Decoder, prompts: Any, by_pair: Any, mean: Mapping[str, Any], possible: np.ndarray, clean: np.ndarray
) -> dict[str, Any]:
    """The rank correlations of scores with the effects of cutting each component, and some edges, in a few pairs."""
    draw = np.random.default_rng(SEED)
    largest = np.any([top_edges(score, possible, UNION) for score in mean.values()], axis=0)
    drawn = [draw.choice(np.flatnonzero(mask), SAMPLED, replace=False) for mask in (possible, largest)]
    without_each = np.tile(possible.ravel(), (2 * SAMPLED, 1))
    without_each[np.arange(2 * SAMPLED), np.concatenate(drawn)] = False
    runs = _stacked(model, list(without_each.reshape(-1, *possible.shape)))
    alone = jnp.array(~np.eye(len(possible), dtype=bool))
    effects, correlations = [], {kind: {name: [] for name in METHODS} for kind in ("components", "edges", "largest")}
    for (x, other, target), own, value in zip(prompts[:PATCHED], by_pair, clean, strict=False):
        effects.append(value - np.asarray(read_components(model, x, other, alone, target), np.float64))
        cut = value - np.asarray(read_each(model, x, _written(model, other)[0], runs, target), np.float64)
        for name in METHODS:
            score = own[name].astype(np.float64)
            correlations["components"][name].append(spearman(effects[-1], score.sum(axis=1)))
            by_edge = score.ravel()[np.concatenate(drawn)]
            correlations["edges"][name].append(spearman(cut[:SAMPLED], by_edge[:SAMPLED]))
            correlations["largest"][name].append(spearman(cut[SAMPLED:], by_edge[SAMPLED:]))
    means = {kind: {name: float(np.mean(r)) for name, r in by.items()} for kind, by in correlations.items()}
    return {"effects": effects, "correlations": means}


_written = jax.jit(writes)


def _stacked(model: Decoder, runs: list[np.ndarray]) -> Any:
    return jax.tree.map(lambda *rows: jnp.stack(rows), *(intact(model, run) for run in runs))


def _by_method(values: Mapping[tuple[str, int], float]) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for (name, n), value in values.items():
        result.setdefault(name, {})[str(n)] = round(float(value), 4) + 0.0
    return result
