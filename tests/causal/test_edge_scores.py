"""The scores of the comparison of circuits: of a frozen model its exact edges, and complete along a path of inputs."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlin
from benchmarks.circuits import comparison, page, plot
from benchmarks.circuits.runs import direction, read_components, top_edges
from benchmarks.circuits.scores import METHODS, scores
from benchmarks.circuits.tasks import TASKS, Pair, pairs
from jaxlin.causal.edges import every_component, intact, possible_edges, read_each
from jaxlin.causal.own_streams import writes
from jaxlin.checkpoint import open_checkpoint
from jaxlin.common.errors import JaxlinError

OTHER = [(7 * token + 3) % 90 for token in tiny.IDS]
STEPS = 50


@pytest.mark.parametrize("variant", ["llama, biases", "gemma2"])
def test_scores(variant: str, checkpoint: Callable[[str], Path], x64: None) -> None:
    """Of the frozen model they are the edges of a circuit; those out of the embeddings sum to the difference."""
    model, _ = jaxlin.load(checkpoint(variant), dtype="float64")
    x, other = model.embed(tiny.IDS), model.embed(OTHER)
    target = direction(model, jnp.array([9]), jnp.array([4, 5]))
    by_method = {name: np.asarray(each) for name, each in scores(model, x, other, target, STEPS).items()}
    every = every_component(model)
    possible, names = possible_edges(every), [each.name for each in every]
    circuit = jaxlin.circuit(model, x, target)
    rows = [names.index(name) for name in circuit.components]
    exact = np.concatenate([circuit.edges, circuit.direct[:, None]], axis=1)
    exact[[name.endswith(".bias") for name in circuit.components]] = 0
    scored = np.where(possible, by_method["circuit"], 0)[np.ix_(rows, np.append(rows, len(names)))]
    np.testing.assert_allclose(scored, exact, atol=1e-10 * np.abs(exact).max())

    clean, corrupt = (float(jnp.dot(target, model(prompt)[-1])) for prompt in (x, other))
    from_embeddings = np.where(possible, by_method["EAP-IG"], 0)[0].sum()
    np.testing.assert_allclose(from_embeddings, clean - corrupt, rtol=0.05)

    # The ordinary gradient is what a small part of the difference does along one edge.
    substitutes, here = writes(model, other)[0], writes(model, x)[0]
    small = 1e-6
    for a, e in ((0, 1), (1, len(names)), (2, len(names) - 1)):
        assert possible[a, e]
        edges = possible.copy()
        edges[a, e] = False
        runs = jax.tree.map(lambda part: part[None], intact(model, edges))
        moved = float(read_each(model, x, here + small * (substitutes - here), runs, target)[0])
        np.testing.assert_allclose((clean - moved) / small, by_method["EAP"][a, e], rtol=1e-3, atol=1e-6)


def test_components_that_are_intact() -> None:
    """A component that is cut is one all of whose edges are cut."""
    model, tokenizer = jaxlin.load()
    x, other = (model.embed(tokenizer.encode(text)) for text in ("The cat sat on", "The man ran by"))
    target = direction(model, jnp.array([9]), jnp.array([4]))
    possible = possible_edges(every_component(model))
    runs = np.ones((4, len(possible)), bool)
    runs[1], runs[2, 3], runs[3, [0, 5]] = False, False, False
    edges = jax.tree.map(lambda *rows: jnp.stack(rows), *(intact(model, possible & run[:, None]) for run in runs))
    by_edges = read_each(model, x, writes(model, other)[0], edges, target)
    np.testing.assert_allclose(read_components(model, x, other, jnp.array(runs), target), by_edges, atol=1e-4)


def test_one_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All edges alone are the untouched model, and its page has a row for each method."""
    texts = (("The cat sat on", "The man ran by"), ("The man sat by", "The cat ran on"))
    drawn = [Pair(*pair, (" the",), (" a", " my")) for pair in texts]
    monkeypatch.setattr(comparison, "pairs", lambda *arguments: drawn)
    counts = {"WITHIN": (10, 10**6), "WITHOUT": (10,), "VALUES": (10,), "COMPONENTS": (21,)}
    for name, value in {**counts, "SAMPLED": 3, "UNION": 5}.items():
        monkeypatch.setattr(comparison, name, value)
    measured = comparison.compare(*jaxlin.load(), "agreement", 2)
    for name in METHODS:
        assert measured["within"][name]["1000000"] == measured["components"][name]["21"] == 1
        assert abs(measured["within"][name]["10"] - 1) > 1e-3
        assert all(-1 <= by_method[name] <= 1 for by_method in measured["correlations"].values())
    conditions = {"checkpoint": "small", "versions": {"jax": "1"}, "command": "c", "python": "3"}
    lines = page.section([{**conditions, **measured}], "curves.svg")
    assert "](curves.svg)" in "\n".join(lines)
    assert sum(line.startswith("| agreement | EAP-IG |") for line in lines) == 5
    assert page.section([]) == []
    assert plot.faithfulness([measured], tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    for words in ("agreement", "circuit, difference", "share with", "components left"):
        assert f"<!-- {words} -->" in drawn
    assert not plot.faithfulness([], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_the_largest_edges() -> None:
    scored = np.array([[9.0, -3.0, 1.0], [0.0, 0.0, 2.0]])
    possible = np.array([[False, True, True], [False, False, True]])
    np.testing.assert_array_equal(top_edges(scored, possible, 2), [[False, True, False], [False, False, True]])


def test_pairs_of_prompts(smollm2_gguf: Path) -> None:
    """Those of a seed are always the same, with as many tokens in each, which differ in some."""
    tokenizer = jaxlin.Tokenizer.from_gguf(open_checkpoint(str(smollm2_gguf), None).config)
    for task in TASKS:
        drawn = pairs(task, tokenizer, 5)
        assert drawn == pairs(task, tokenizer, 5)
        assert len({len(tokenizer.encode(text)) for pair in drawn for text in (pair.text, pair.other)}) == 1
        assert all(pair.text != pair.other for pair in drawn)
    with pytest.raises(JaxlinError, match="expected 3 pairs"):
        pairs("docstring", jaxlin.load()[1], 3)
