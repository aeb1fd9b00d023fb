"""One result of each class, of numbers drawn here, with the words of a prompt that has every kind of token."""

from dataclasses import fields
from typing import Any

import numpy as np

from jaxlin.activations import Activations
from jaxlin.attribution import (
    AttentionScores,
    Attribution,
    Circuit,
    ExpertContributions,
    Experts,
    Neurons,
    StreamContributions,
)
from jaxlin.causal import Deletion, EdgeAblation, HeadAblation, Patching, Removal, UnitPatching, Validity
from jaxlin.lens import ExactLens, JacobianLens, LensReading
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.linearize.residuals import ResidualEstimate
from jaxlin.loading import MemoryPlan
from jaxlin.report.check.results import Line, ModelCheck
from jaxlin.report.circuit_graph import CircuitGraph, CircuitNode
from jaxlin.report.comparison import Comparison
from jaxlin.report.details import Detail, Neuron, Source, TokenReading
from jaxlin.report.experts import ChosenExpert, RoutedLayer
from jaxlin.report.explanation import Explanation, SpectrumRanks, Triplet
from jaxlin.report.head_scores import HeadScore
from jaxlin.report.lens_words import LensWords
from jaxlin.report.rule_comparison import RuleContributions
from jaxlin.results import Provenance, Result, note
from jaxlin.spectrum import (
    Baseline,
    Baselines,
    Features,
    LayerSpectra,
    MapRanks,
    Poles,
    Ranks,
    RuleAngles,
    TopTokens,
    TripletWords,
)
from jaxlin.steering import DoseCurve, Generation

TOKENS = ("<bos>", " Mary", " gave", " a<b", "שלום", " <0xF0><0x9F>", "<0x8C>", "<0x89>", " é", " Mary")
"""A repeated token, markup, Hebrew, and 🌉 in three parts."""

NAMES = ("<bos>", "·Mary₁", "·gave", "·a<b", "שלום", "·🌉⟨F0 9F⟩", "⟨8C⟩", "⟨89⟩", "·é", "·Mary₉")

T, LAYERS, HEADS, K, D, VOCAB = len(TOKENS), 4, 3, 3, 6, 10


def provenance() -> Provenance:
    """A provenance of which everything is known."""
    texts = dict(enumerate((*TOKENS[1:], "the")))
    ids = tuple({text: key for key, text in texts.items()}.get(token, 99) for token in TOKENS)
    return Provenance(
        model="a/model",
        revision="0" * 40,
        files="f" * 32,
        architecture="Llama, 4 layers, 6 features",
        dtype="float32",
        rule="gate",
        ids=ids,
        settings={"target": 1, "position": -1, "kind": "resid_pre", "tokens": [1, 2]},
        versions={"jaxlin": "0", "jax": "0"},
        tokenizer="e" * 32,
        texts={**texts, 99: "<bos>"},
    )


def samples() -> dict[str, Result]:
    """A result of each class, by its name."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def ids(*shape: int) -> np.ndarray:
        return rng.integers(0, VOCAB, shape).astype(np.int32)

    def spectrum(count: int = D) -> np.ndarray:
        return np.sort(np.abs(draw(count)))[::-1] + np.float32(0.1)

    neurons = Neurons(np.arange(K), ids(K), draw(K))
    experts = Experts(np.array([1, 3]), ids(2, T, 2), np.abs(draw(2, T, 2)), draw(2, T, 2), None, draw(2, T))
    poles = Poles(*(TopTokens(ids(K, 4), draw(K, 4)) for _ in range(2)))
    deep = Poles(*(TopTokens(ids(K, T, 4), draw(K, T, 4)) for _ in range(2)))
    share = np.abs(draw(K, T))
    ranks = Ranks(2.5, 4.0, 3.25, 3, 5, 4)
    baseline = Baseline("local map", 1e-7, spectrum(), ranks, None)
    angles = RuleAngles(("gate", "up"), np.sort(np.abs(draw(K))) * 40, np.sort(np.abs(draw(K))) * 40)
    heads = draw(LAYERS, HEADS)
    heads[1, 2] = np.nan
    chosen = ChosenExpert(3, 0.5, -1.25)
    reading = TokenReading(2, 0.75, [" the", " a"], ["<0xF0>"])
    rule = RuleContributions("up", [0.5 - 0.125 * t for t in range(T)], 0.25)
    probabilities = [[[0.5 + 0.05 * t, 0.25] for t in range(T)] for _ in range(2)]
    lens_words = LensWords(
        "logit lens", [0, 1], [[[" the", " a"]] * T, [[" Mary", "<0xF0>"]] * T], probabilities, [3, 0]
    )
    score = HeadScore(2, 0, 0.5, 1.5, [("m0", "embed", 1.25), ("embed", "bias", -0.5)], 0.75)
    node = CircuitNode("a1.h0", 1, 2, 1.5, [(2, 1.0), (0, 0.5)], [(2, 1.5)], [" the", " a"], score)
    of_token = CircuitNode("t2", -1, 2, 1.25, [], [], [])
    graph = CircuitGraph(2.5, 2.0, 0.9, [of_token, node], [("a1.h0", "logit", 1.5), ("t2", "a1.h0", -1.25)])
    detail = Detail(
        "Llama, 4 layers", draw(LAYERS + 1, T).tolist(), draw(LAYERS + 1).tolist(), 1e-7, 0.5, draw(LAYERS).tolist(),
        draw(LAYERS).tolist(), draw(LAYERS, HEADS).tolist(), [[[Source(1, 0.5)]] * HEADS] * LAYERS, [0.0] * LAYERS,
        [0.0] * LAYERS, 0.0, 1e-7, [Neuron(1, 2, 0.25)], [3.0, 2.0, 1.0], [[reading]], [rule], [lens_words], graph,
    )  # fmt: skip
    triplet = Triplet(3.0, [" the", " a"], [" of"], [(" Mary", 0.75, [" the"])])
    check = Line("logits", True, 1e-6, 1e-4, note="of the largest")
    pattern = np.tril(np.abs(draw(LAYERS, HEADS, T, T)))
    results: list[Result] = [
        Activations(
            {"pattern": pattern / pattern.sum(-1, keepdims=True), "resid_post": draw(LAYERS, T, D)},
            {"heads": {1: draw(T, HEADS, 2)}}, LAYERS,
        ),
        neurons,
        experts,
        Attribution(
            2.5, draw(T), 0.5, 0.25, draw(LAYERS), draw(LAYERS), heads, neurons, draw(LAYERS), draw(LAYERS), 0.125,
            sources=draw(LAYERS, HEADS, T),
        ),
        StreamContributions(2.5, draw(LAYERS + 1, T), draw(LAYERS + 1)),
        ExpertContributions(2.5, experts, draw(2, T)),
        Deletion(2.5, draw(T), draw(T)),
        HeadAblation(2.5, draw(LAYERS, HEADS), draw(LAYERS, HEADS), heads),
        Patching(2.5, 1.5, 1, draw(LAYERS, T), draw(LAYERS, T)),
        Removal(1.5, 0.75, -0.5, np.abs(draw(5)), draw(5)),
        Validity(np.abs(draw(T, 2)), np.abs(draw(T, 2)), np.abs(draw(T, 2))),
        LensReading(
            (0, 1, 3), tuple(range(T)), ids(3, T, 4), -np.sort(-draw(3, T, 4)), ids(3, T, 2),
            np.full((3, T, 4), 0.25, np.float32),
        ),
        JacobianLens(
            np.ones((3, D, D), np.float32), (0, 1, 3), 4, "jacobian_lens", 2, (0.5, 1.5, 1.0),
        ),
        ExactLens(draw(D), draw(LAYERS + 1, T, D), draw(LAYERS + 1, D)),
        SVD(draw(D, K), spectrum(K), draw(K, T, D), np.abs(draw(K)), np.abs(draw(K)), "krylov"),
        poles.positive,
        poles,
        TripletWords(poles, deep, share / share.sum(1, keepdims=True)),
        Features(ids(T, K), np.abs(draw(T, K)), Poles(*(TopTokens(ids(T, K, 4), draw(T, K, 4)) for _ in range(2)))),
        LayerSpectra(np.stack([spectrum() for _ in range(LAYERS)]), None, draw(LAYERS, K, D)),
        ranks,
        MapRanks(ranks, Ranks(1.5, 3.0, 2.25, 2, 4)),
        baseline,
        angles,
        Baselines((baseline, Baseline("y xᵀ/|x|²", 0.0, np.eye(D)[0], ranks, None)), (angles,), 0),
        DoseCurve(
            "Add", ("resid_post", 2), "all", "the", np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.5, 1.0]),
            np.array([0.1, 0.2, 0.6]), np.array([0.0, 0.5, 2.0]), np.array([1.0, 1.5, 3.0]), np.array([0.0, 0.1, 0.4]),
            ["One", "Two"], [["a", "b"], ["c", "d"], ["e", "f"]],
        ),
        Generation([1, 2], [3, 4, 5], False, " a<b", draw(3, VOCAB)),
        chosen,
        RoutedLayer(1, [chosen], 0.25),
        reading,
        Neuron(1, 2, 0.25),
        Source(1, 0.5),
        detail,
        triplet,
        SpectrumRanks(2.5, 4.0),
        Explanation(
            list(TOKENS), T - 1, "gate", "float32", [(" the", 0.5)], 1e-7, " the", None, 0.5, None, 2.5,
            draw(T).tolist(), 0.5, 1e-7, "dense", [triplet], SpectrumRanks(2.5, 4.0), None,
            [RoutedLayer(1, [chosen], 0.25)], detail,
        ),
        check,
        ModelCheck("a/model", {"layers": "4"}, (check, Line("rows", False, 1.0, 1e-5), Line("text", None))),
        MemoryPlan(1_000_000, 8, 64, 4_000_000, 100_000, 2_000_000, 3_000_000, 1_000_000, 500_000),
        Circuit(2.5, ("embed", "a0.h0", "m0", "a1.h1", "m1"), draw(5), np.triu(draw(5, 5), 1), draw(5), draw(5), 0.25),
        UnitPatching(2.5, 1.5, draw(LAYERS, HEADS), draw(LAYERS, HEADS)),
        rule,
        lens_words,
        EdgeAblation(2.5, 0.5, draw(3), draw(3), np.array([5, 20, 10])),
        AttentionScores(
            2, 1, T - 1, 1, 2.5, 0.75, 0.5, ("embed", "a0.h0", "m0", "bias"), draw(4, 4), draw(T + 1, T + 1),
            against=(0, T - 1, 3),
        ),
        Comparison(
            " the", None, [*((token, token) for token in TOKENS), (" of", None), (None, "<0xE4>")],
            np.concatenate([draw(T, 2), [[0.5, np.nan], [np.nan, -0.5]]]).astype(np.float64), np.array([0.5, 0.0]),
            np.array([2.5, 1.5]), np.array([0.5, 0.25]), np.array([1e-7, 2e-7]), np.float64(draw(2, LAYERS)),
            np.float64(draw(2, LAYERS)), np.float64(np.stack([heads, heads + 1])),
        ),
        node,
        graph,
        ResidualEstimate(5e-7, 2.5e-7, 1.5e-5, 1),
        score,
    ]  # fmt: skip
    for result in results:
        note(result, provenance())
    return {type(result).__name__: result for result in results}


def changed(result: Result) -> Any:
    """Another result of the same class: one whose first array, number, text or list is another."""
    instance: Any = result
    for each in fields(instance):
        value = getattr(result, each.name)
        if isinstance(value, np.ndarray) and value.size:
            other = value.copy()
            other.reshape(-1)[0] += 1
            return result.replaced(**{each.name: other})
        if isinstance(value, int | float):
            return result.replaced(**{each.name: value + 1})
        if isinstance(value, str | list | tuple) and value:
            return result.replaced(**{each.name: value[::-1] if isinstance(value, tuple) else value * 2})
        if isinstance(value, dict):
            return result.replaced(**{each.name: {key: 2 * array for key, array in value.items()}})
        if isinstance(value, Result):
            return result.replaced(**{each.name: changed(value)})
    raise AssertionError(type(result))
