"""The circuit of the explained logit, pruned to a graph that a person can look at."""

import re
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlin import plots
from jaxlin.attribution.circuits import Circuit, Edge, circuit
from jaxlin.attribution.circuits.result import row_of
from jaxlin.linearize.targets import Target
from jaxlin.nn.biases import without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import Embeddings
from jaxlin.report.head_scores import HeadScore, Reading, head_scores
from jaxlin.results import Result
from jaxlin.spectrum.words import promoted_tokens
from jaxlin.tokenizer import Tokenizer

EDGES = 60
"""The most edges between components that are drawn."""

TOKENS_DRAWN = 3
"""The tokens from which the edge of the embeddings to a component is drawn."""

FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""The shares of influence of which the first is taken that leaves no more edges than are drawn."""

TOKENS_LISTED = 6
"""The tokens that are listed for a component."""

LARGEST = 2**30
"""Bytes that the outputs of all components may take. A larger circuit is not drawn."""


HEAD = re.compile(r"a\d+\.h(\d+)")
"""The name of a head, with its number."""


@dataclass(frozen=True, eq=False)
class CircuitNode(Result):
    """A component of the graph; a token of the prompt is one too.

    Attributes:
        name: as in `Circuit`: ``"a3.h5"``, ``"m3"``, ``"p3"``; of a token ``"t4"``, with its position.
        layer: its layer; -1 for a token.
        token: the position at which most of what flows through it is written.
        effect: its total effect on the logit, by all paths; of a token, what flows from its embedding along the graph.
        reads: the positions at which the largest parts enter it, with these.
        writes: those at which the largest parts leave it, with these.
        promotes: the words whose logits its output at `token` raises most, past all other components.
        attention: of a head, why it looked from one of `writes` at one of `reads`; otherwise None.
    """

    name: str
    layer: int
    token: int
    effect: float
    reads: list[tuple[int, float]]
    writes: list[tuple[int, float]]
    promotes: list[str]
    attention: HeadScore | None = None


@dataclass(frozen=True, eq=False)
class CircuitGraph(Result):
    """The edges with the most influence on the logit, and the components between them.

    Attributes:
        value: the logit.
        carried: the part of it that the pruned circuit carries, with all other edges cut.
        fraction: its share of all influence, see `Circuit.prune`.
        nodes: the components, in the order of the forward pass, after the tokens.
        edges: the edges, the largest first: names of nodes or ``"logit"``, and the effect.
    """

    value: float
    carried: float
    fraction: float
    nodes: list[CircuitNode]
    edges: list[tuple[str, str, float]]

    def _draw(self, ax: Any) -> None:
        """The graph, layers upward."""
        rows = {node.name: -1 if node.layer < 0 else row_of(node.name) for node in self.nodes}
        plots.layered_graph(ax, {**rows, "logit": max(rows.values(), default=0) + 1}, self.edges)
        plots.write(ax, title=f"the circuit of {self.value:+.3f}")


def circuit_graph(
    model: Decoder, tokenizer: Tokenizer, x: Embeddings, target: Target, position: int, top: int
) -> CircuitGraph | None:
    """The graph of a prediction; None for a model that `circuit` does not take, or a circuit that is too large."""
    config = model.config
    components = (config.num_attention_heads + 2) * config.num_hidden_layers
    size = components * len(x) * config.hidden_size * np.dtype(model.dtype).itemsize
    if model.edits is not None or size > LARGEST:
        return None
    whole = circuit(model, x, target, position=position)
    for fraction in FRACTIONS[:-1]:
        pruned = whole.prune(fraction)
        if np.count_nonzero(pruned.edges) + np.count_nonzero(pruned.direct) <= EDGES:
            return _graph(model, tokenizer, x, whole, pruned, fraction, position, top)
    return _graph(model, tokenizer, x, whole, whole.prune(FRACTIONS[-1]), FRACTIONS[-1], position, top)


def _graph(
    model: Decoder,
    tokenizer: Tokenizer,
    x: Embeddings,
    whole: Circuit,
    pruned: Circuit,
    fraction: float,
    position: int,
    top: int,
) -> CircuitGraph:
    flows, edges = pruned.by_token(), _without_ends(pruned.top(EDGES), whole.components)
    names = [name for name in whole.components if any(name in (edge.source, edge.target) for edge in edges)]
    indices = [whole.index(name) for name in names]
    directions = without_biases(model).norm(jnp.asarray(flows.outputs[indices]), Context())
    words = np.asarray(promoted_tokens(model, directions, top).ids)
    nodes = []
    for name, index, ids in zip(names, indices, words, strict=True):
        if name != "embed":
            leaving = flows.leaving[index]
            token = int(np.argmax(np.abs(leaving))) if leaving.any() else position
            promotes = [tokenizer.token(int(i)) for i in ids]
            layer = int(name[1:].split(".")[0])
            reads, writes = _largest(flows.entering[index]), _largest(leaving)
            nodes.append(CircuitNode(name, layer, token, whole.effect(name), reads, writes, promotes))
    nodes = _with_attention(model, x, nodes)
    drawn = _edges_of_tokens(whole, flows, edges, position)
    embedded = {source: int(source[1:]) for source, _, _ in drawn if source[0] == "t"}
    tokens = [
        CircuitNode(name, -1, token, float(flows.leaving[0, token]), [], [], [])
        for name, token in sorted(embedded.items(), key=lambda pair: pair[1])
    ]
    return CircuitGraph(whole.value, pruned.carried, fraction, [*tokens, *nodes], drawn)


def _with_attention(model: Decoder, x: Embeddings, nodes: list[CircuitNode]) -> list[CircuitNode]:
    """The nodes, in which each head has its score."""
    heads = {node.name: (node, int(name[1])) for node in nodes if (name := HEAD.fullmatch(node.name))}
    readings = [
        Reading(node.layer, number, *([token for token, _ in side] for side in (node.writes, node.reads)))
        for node, number in heads.values()
    ]
    scores = dict(zip(heads, head_scores(model, x, readings), strict=True))
    return [replace(node, attention=scores.get(node.name)) for node in nodes]


def _without_ends(edges: list[Edge], components: tuple[str, ...]) -> list[Edge]:
    """The edges that lead on to the logit: what enters a component that no edge leaves reaches nothing."""
    leading = {"logit"}
    for name in reversed(components):
        if any(edge.source == name and edge.target in leading for edge in edges):
            leading.add(name)
    return [edge for edge in edges if edge.target in leading]


def _edges_of_tokens(whole: Circuit, flows: Any, edges: list[Edge], position: int) -> list[tuple[str, str, float]]:
    """The edges, in which one from the embeddings is several from single tokens, those of its largest parts."""
    drawn: list[tuple[str, str, float]] = []
    for edge in edges:
        if edge.source != "embed":
            drawn.append((edge.source, edge.target, edge.effect))
        elif edge.target == "logit":
            drawn.append((f"t{position}", "logit", edge.effect))
        else:
            by_token = flows.embedded[whole.index(edge.target)]
            drawn += [(f"t{token}", edge.target, effect) for token, effect in _largest(by_token)[:TOKENS_DRAWN]]
    return sorted(drawn, key=lambda each: -abs(each[2]))


def _largest(by_token: np.ndarray) -> list[tuple[int, float]]:
    order = np.argsort(-np.abs(by_token), kind="stable")[:TOKENS_LISTED]
    return [(int(token), float(by_token[token])) for token in order if by_token[token]]
