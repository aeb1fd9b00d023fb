"""Circuits: conserved at every node, and the edges of an unmodified transformers model under autograd."""

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest
import tiny
import torch
from circuit_oracle import MODULES, POSITION, SHARED_VALUES, TOKEN, CircuitOracle

import jaxlin
from jaxlin.attribution.circuits import Circuit, token_blocks
from jaxlin.common.errors import JaxlinError
from jaxlin.steering import zero_ablation


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [*MODULES, *SHARED_VALUES])
def test_edges_are_those_of_autograd(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Each edge from what PyTorch says a component adds, and the gradient that it gives through another alone."""
    folder = checkpoint(name)
    model, _ = jaxlin.load(folder, dtype="float64")
    circuit = jaxlin.circuit(model, model.embed(tiny.IDS), TOKEN, position=POSITION)
    assert circuit.defect <= 1e-12
    reference = oracle.load(folder, torch.float64)
    with oracle.lifted(reference), oracle.frozen(reference, "gate"):
        torch_model = CircuitOracle(reference, {**MODULES, **SHARED_VALUES}[name])
        names, starts = ["embed"], []
        expected, found = [], []

        def compare(reader: str, layer: int, part: int | str, before: list[str]) -> None:
            expected.extend(torch_model.edges(layer, part)[: len(before)])
            found.extend(circuit.edge(writer, reader) for writer in before)

        for layer, values in enumerate(torch_model.value_layers):
            starts.append(len(names))
            heads = [f"a{layer}.h{head}" for head in range(torch_model.heads)]
            for head, name in enumerate(heads):
                compare(name, layer, head, names[: starts[values]])
            names += heads
            for name, part in {f"m{layer}": "mlp", f"p{layer}": "per_layer"}.items():
                if name in circuit.components:
                    compare(name, layer, part, names)
                    names.append(name)
    assert names == [each for each in circuit.components if not each.endswith(".bias")]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert np.count_nonzero(circuit.edges) >= len(expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["llama, biases", "gpt_oss, clipped", "phi", *SHARED_VALUES])
def test_paths(name: str, tmp_path: Path) -> None:
    """All paths sum to the value, those through an edge to that edge, and a path alone carries its effect."""
    variant = tiny.VARIANTS[name]
    options = {**variant.options, "num_hidden_layers": 2}
    if name in SHARED_VALUES:
        options |= {"layer_types": ["full_attention"] * 2, "num_kv_shared_layers": 1}
        per_layer = ("intermediate_size", "activation_sparsity_pattern")
        options |= {key: options[key][:2] for key in per_layer if isinstance(options.get(key), list)}
    variant = replace(variant, options=options)
    model, _ = jaxlin.load(tiny.build(variant, tmp_path), dtype="float64")
    circuit = jaxlin.circuit(model, model.embed(tiny.IDS), TOKEN, position=POSITION)
    paths = circuit.paths(10**6, steps=10**6)
    scale = 1e-12 * np.abs(circuit.nodes).max()
    assert abs(sum(path.effect for path in paths) + circuit.final_bias - circuit.value) <= scale
    for edge in circuit.top(4):
        through = [
            p.effect for p in paths if (edge.source, edge.target) in itertools.pairwise((*p.components, "logit"))
        ]
        assert abs(sum(through) - edge.effect) <= scale
        assert abs(circuit.edge_by_position(edge.source, edge.target).sum() - edge.effect) <= scale
    assert abs(circuit.carried - circuit.value) <= scale
    assert circuit.prune(0.5).carried != circuit.value

    tokens = circuit.by_token()
    reads = [not circuit._only_writes(component) for component in circuit.components]
    np.testing.assert_allclose(tokens.leaving.sum(axis=1), circuit.nodes, atol=scale)
    np.testing.assert_allclose((tokens.entering.sum(axis=1) + circuit.biases)[reads], circuit.nodes[reads], atol=scale)
    np.testing.assert_allclose(tokens.embedded.sum(axis=1), circuit.edges[0], atol=scale)
    starts = np.zeros(len(tiny.IDS))
    for path in paths:
        if path.position is not None:
            starts[path.position] += path.effect
    np.testing.assert_allclose(tokens.leaving[0], starts, atol=10 * scale)

    names = next(p.components for p in paths if len(p.components) == 3 and p.position is not None)
    kept = list(itertools.pairwise((*names, "logit")))
    among = np.array([[(source, target) in kept for target in circuit.components] for source in circuit.components])
    direct = np.array([(source, "logit") in kept for source in circuit.components])
    alone = replace(circuit, edges=circuit.edges * among, direct=circuit.direct * direct)
    object.__setattr__(alone, "_network", circuit._behind)
    within = [p.effect for p in paths if p.components in (names, names[1:], names[2:])]
    assert abs(alone.carried - sum(within) - circuit.final_bias) <= scale


@pytest.mark.usefixtures("x64")
def test_edges_by_position(checkpoint: Callable[[str], Path]) -> None:
    """Their sums are the edges, where they are read is what autograd says, and each token of a head is conserved."""
    folder, layer, head = checkpoint("gemma2"), 1, 2
    model, _ = jaxlin.load(folder, dtype="float64")
    circuit = jaxlin.circuit(model, model.embed(tiny.IDS), TOKEN, position=POSITION)
    reference = oracle.load(folder, torch.float64)
    with oracle.lifted(reference), oracle.frozen(reference, "gate"):
        torch_model = CircuitOracle(reference, MODULES["gemma2"])
        read, embed = torch_model.read(layer, head), torch_model.writes()[0].numpy()
    name = f"a{layer}.h{head}"
    into = {each: circuit.edge_by_position(each, name) for each in circuit.components}
    out = {each: circuit.edge_by_position(name, each) for each in (*circuit.components, "logit")}
    scale = np.abs(circuit.nodes).max()
    np.testing.assert_allclose(into["embed"].sum(axis=0), np.sum(read * embed, axis=1), rtol=0, atol=1e-10 * scale)
    edges = {(each, name): table for each, table in into.items()} | {(name, each): out[each] for each in out}
    for (source, target), table in edges.items():
        np.testing.assert_allclose(table.sum(), circuit.edge(source, target), rtol=0, atol=1e-12 * scale)
        assert not np.triu(table, 1).any()
    entering, leaving = sum(into.values()).sum(axis=1), sum(out.values()).sum(axis=0)
    np.testing.assert_allclose(entering, leaving, rtol=0, atol=1e-12 * scale)
    assert np.count_nonzero(np.abs(entering) > 1e-6 * scale) > 3
    assert not np.tril(out["m1"], -1).any()
    assert np.tril(into["embed"], -1).any()


CONSERVED = {
    "phi": "gate",
    "mistral4": "up",
    "qwen3_5_text, interval": "half",
    "olmoe, clip_qkv": "half",
    "gpt_oss, clipped": "up",
    "gemma4_text, experts": "gate",
    "gemma4_text, per layer": "up",
    "gemma3n_text": "half",
    "muse_glimmer, biases": "half",
}
"""Parallel blocks, biases, factors of the stream, latents, unlike layers, clipped values, gated heads, values of other
layers with per-layer embeddings, several streams, and two kinds of experts; each with a freeze rule."""


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CONSERVED)
def test_what_enters_a_node_leaves_it(name: str, checkpoint: Callable[[str], Path]) -> None:
    """At every node of every kind of block; the direct effects of heads are those of `attribute`."""
    model, _ = jaxlin.load(checkpoint(name), dtype="float64")
    x = model.embed(tiny.IDS)
    circuit = jaxlin.circuit(model, x, TOKEN, position=POSITION, rule=CONSERVED[name])
    assert circuit.defect <= 1e-12
    parts = jaxlin.attribute(model, x, TOKEN, position=POSITION, rule=CONSERVED[name])
    scale = np.abs(parts.tokens).max()
    np.testing.assert_allclose(circuit.effect("embed"), parts.tokens.sum(), rtol=0, atol=1e-12 * scale)
    for layer, heads in enumerate(parts.heads):
        for head in np.flatnonzero(np.isfinite(heads)):
            np.testing.assert_allclose(circuit.edge(f"a{layer}.h{head}", "logit"), heads[head], rtol=0, atol=1e-12)


def test_long_prompts_in_blocks(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges are the same with a few tokens expanded at a time, and with the factors recomputed."""
    for name in ("llama, biases", "olmoe, clip_qkv"):
        model, _ = jaxlin.load(checkpoint(name))
        x = model.embed(tiny.IDS)
        at_once = jaxlin.circuit(model, x, TOKEN)
        assert at_once.defect <= 1e-5
        monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 2**17)
        jax.clear_caches()
        in_blocks = jaxlin.circuit(model, x, TOKEN, remat=True)
        monkeypatch.undo()
        assert in_blocks.components == at_once.components
        scale = np.abs(at_once.edges).max()
        np.testing.assert_allclose(in_blocks.edges, at_once.edges, rtol=0, atol=1e-5 * scale)


def test_pruning_keeps_the_fewest_edges() -> None:
    """Of a chain with a weak side road, the chain; all of it for a fraction of 1."""
    edges = np.zeros((3, 3))
    edges[0, 1], edges[1, 2], edges[0, 2] = 8.0, 9.0, 1.0
    direct, none = np.array([0.0, 0.0, 10.0]), np.zeros(3)
    circuit = Circuit(10.0, ("embed", "m0", "m1"), np.array([9.0, 9.0, 10.0]), edges, direct, none, 0.0)
    strong = circuit.prune(0.85)
    assert [(e.source, e.target) for e in strong.top(9)] == [("m1", "logit"), ("m0", "m1"), ("embed", "m0")]
    assert circuit.prune(1.0) == circuit
    graph = circuit.to_networkx()
    assert graph.edges["embed", "m1"]["effect"] == 1.0
    assert graph.nodes["logit"]["effect"] == 10.0


def test_bad_input(checkpoint: Callable[[str], Path]) -> None:
    """Each is refused in one sentence that says what was expected."""
    model, _ = jaxlin.load(checkpoint("llama, biases"))
    x = model.embed(tiny.IDS)
    circuit = jaxlin.circuit(model, x, TOKEN)
    nothing = circuit.replaced(edges=0 * circuit.edges, direct=0 * circuit.direct)
    edited = jaxlin.with_edits(model, [zero_ablation(("heads", 1), units=0)])
    saved = Circuit(*(getattr(circuit, field.name) for field in fields(circuit)))
    for message, call in {
        "expected one of the circuit": lambda: circuit.edge("embed", "m99"),
        "expected a positive number of them": lambda: circuit.top(0),
        "expected a fraction above 0 and at most 1": lambda: circuit.prune(1.5),
        "expected a positive number of paths": lambda: circuit.paths(True),
        "found one from a file": lambda: saved.paths(3),
        r"the circuit, such as .*; found .b0": lambda: circuit.edge_by_position("embed", "b0"),
        "expected a circuit with an edge that is not 0": lambda: nothing.prune(),
        "Circuit: expected numbers": lambda: jax.jit(lambda x: jaxlin.circuit(model, x, TOKEN).value)(x),
        "expected a model without edits": lambda: jaxlin.circuit(edited, x, TOKEN),
        "Position: expected one in": lambda: jaxlin.circuit(model, x, TOKEN, position=99),
    }.items():
        with pytest.raises(JaxlinError, match=message):
            call()
