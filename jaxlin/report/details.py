"""The parts of an explanation that only the page shows: layers, heads, neurons, lenses and all singular values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlin import plots
from jaxlin.attribution.layer_streams import StreamContributions
from jaxlin.attribution.result import Attribution
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.nn.decoder import Decoder
from jaxlin.report.circuit_graph import CircuitGraph
from jaxlin.report.lens_words import LensWords
from jaxlin.report.rule_comparison import RuleContributions
from jaxlin.results import Result
from jaxlin.spectrum.words import right_words
from jaxlin.tokenizer import Tokenizer

READINGS = 8
"""Tokens of the prompt that are listed for a right vector, if they hold at least 1 % of its squared norm."""

SOURCES = 6
"""Positions that are listed for a head."""


@dataclass(frozen=True, eq=False)
class TokenReading(Result):
    """The part of a right singular vector at one token of the prompt.

    Attributes:
        index: the position of the token.
        share: of the vector's squared norm.
        near: the tokens of the vocabulary whose embeddings are nearest to the part.
        opposite: those whose embeddings are nearest to its negative.
    """

    index: int
    share: float
    near: list[str]
    opposite: list[str]


@dataclass(frozen=True, eq=False)
class Neuron(Result):
    """A hidden neuron of an MLP, and its contribution to the logit."""

    layer: int
    index: int
    contribution: float


@dataclass(frozen=True, eq=False)
class Source(Result):
    """A position that a head attends to, and the contribution to the logit that the head reads there."""

    index: int
    contribution: float


@dataclass(frozen=True, eq=False)
class Detail(Result):
    """Contributions to the logit by layer and part of the model, and all singular values.

    Attributes:
        model: the model in words: its family, depth and width.
        streams: contributions of each token's residual stream, before each block and after the last,
            ``[layers + 1][t]``.
        stream_biases: the contribution of the biases after that point, ``[layers + 1]``; added to its row of `streams`,
            it gives the logit.
        stream_defect: the largest error of these sums.
        embed: the direct contribution of the embedding at the position.
        attn: that of each layer's attention.
        mlp: that of each layer's MLP.
        heads: that of each query head, ``[layers][heads]``.
        sources: the positions of the largest contributions through each head, of either sign, ``[layers][heads]``.
        attn_bias: the part of `attn` that comes from biases, not from a head, ``[layers]``.
        mlp_bias: the part of `mlp` that comes from biases, not from a neuron, ``[layers]``.
        final_bias: the contribution of the biases after the last block.
        component_defect: the error of the sum of `embed`, `attn`, `mlp` and `final_bias`.
        neurons: the neurons of the largest contributions, of either sign.
        spectrum: the singular values: all of them if all rows of J were computed, else the largest.
        readings: of each singular triplet, the tokens that its right vector reads.
        rules: the contributions of the tokens under each freeze rule; none where the rule has no effect.
        lenses: what the lenses read from the streams: the logit lens, a Jacobian lens if one was given, and the exact
            lens if all rows of J were computed.
        circuit: the circuit of the logit as a graph; None for a model that has none, or where it is too large.
    """

    model: str
    streams: list[list[float]]
    stream_biases: list[float]
    stream_defect: float
    embed: float
    attn: list[float]
    mlp: list[float]
    heads: list[list[float]]
    sources: list[list[list[Source]]]
    attn_bias: list[float]
    mlp_bias: list[float]
    final_bias: float
    component_defect: float
    neurons: list[Neuron]
    spectrum: list[float]
    readings: list[list[TokenReading]]
    rules: list[RuleContributions]
    lenses: list[LensWords]
    circuit: CircuitGraph | None

    def _draw(self, ax: Any) -> None:
        """A heat map of the contributions of the streams, layer by token."""
        streams = np.array(self.streams)
        plots.heat_map(ax, streams, list(map(str, range(len(streams)))), self._labels("position", streams.shape[1]))
        plots.write(ax, title="Contributions of the stream", ylabel="before layer")


def make_detail(
    model: Decoder,
    tokenizer: Tokenizer,
    parts: Attribution,
    layers: StreamContributions,
    spectrum: Float[np.ndarray, " n"],
    leading: SVD,
    top: int,
    rules: list[RuleContributions],
    lenses: list[LensWords],
    circuit: CircuitGraph | None,
) -> Detail:
    """The detail of an attribution with sources, and `top` words for each pole of the `leading` triplets."""
    assert parts.sources is not None
    neurons = parts.neurons
    return Detail(
        model=model_in_words(model),
        streams=layers.tokens.tolist(),
        stream_biases=layers.bias.tolist(),
        stream_defect=layers.defect,
        embed=parts.embed,
        attn=parts.attn.tolist(),
        mlp=parts.mlp.tolist(),
        heads=[heads[~np.isnan(heads)].tolist() for heads in parts.heads],
        sources=[[_strongest(head) for head in heads if not np.isnan(head).any()] for heads in parts.sources],
        attn_bias=parts.attn_bias.tolist(),
        mlp_bias=parts.mlp_bias.tolist(),
        final_bias=parts.final_bias,
        component_defect=parts.component_defect,
        neurons=[
            Neuron(int(layer), int(index), float(value))
            for layer, index, value in zip(neurons.layer, neurons.index, neurons.contribution, strict=True)
        ],
        spectrum=spectrum.tolist(),
        readings=[_readings(model, tokenizer, v, top) for v in leading.v],
        rules=rules,
        lenses=lenses,
        circuit=circuit,
    )


def _readings(model: Decoder, tokenizer: Tokenizer, v: Float[np.ndarray, "t d"], top: int) -> list[TokenReading]:
    share = np.sum(np.square(v), axis=-1)
    heaviest = np.argsort(-share, kind="stable")[:READINGS]
    heaviest = heaviest[(share[heaviest] >= 0.01) | (np.arange(len(heaviest)) == 0)]
    poles = right_words(model, v[heaviest], top)

    def words(ids: np.ndarray) -> list[str]:
        return [tokenizer.token(int(i)) for i in ids]

    return [
        TokenReading(int(t), float(share[t]), words(near), words(far))
        for t, near, far in zip(heaviest, np.asarray(poles.positive.ids), np.asarray(poles.negative.ids), strict=True)
    ]


def _strongest(head: Float[np.ndarray, " t"]) -> list[Source]:
    order = np.argsort(-np.abs(head), kind="stable")[:SOURCES]
    return [Source(int(t), float(head[t])) for t in order if head[t]]


def model_in_words(model: Decoder) -> str:
    """The family, depth and width of a model."""
    config = model.config
    return f"{type(model).__name__}, {config.num_hidden_layers} layers, {config.hidden_size} features"
