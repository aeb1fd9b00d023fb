"""What the page of an explanation shows beyond the terminal: layers, heads, neurons and the whole spectrum."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxlin.attribution.layer_streams import Streams
from jaxlin.attribution.result import Attribution
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.nn.decoder import Decoder
from jaxlin.spectrum.words import right_words
from jaxlin.tokenizer import Tokenizer

READINGS = 8
"""Input tokens named for a right vector, of those that hold a hundredth of it or more."""

SOURCES = 6
"""Positions named for a head."""


@dataclass(frozen=True)
class Reading:
    """What a right vector reads of one input token.

    Attributes:
        index: the token's place in the prompt.
        share: of the squared norm of the right vector.
        near: the vocabulary's tokens nearest to the vector there.
        opposite: those nearest to its other pole.
    """

    index: int
    share: float
    near: list[str]
    opposite: list[str]


@dataclass(frozen=True)
class Neuron:
    """A hidden neuron of an MLP, and what it contributes to the logit."""

    layer: int
    index: int
    contribution: float


@dataclass(frozen=True)
class Source:
    """A position that a head reads, and what it brings from there to the logit."""

    index: int
    contribution: float


@dataclass(frozen=True)
class Detail:
    """Contributions to the target's logit by part of the model, the spectrum, and what its vectors read.

    Attributes:
        model: the model in words: its family, depth and width.
        streams: what the stream of each token contributes before each block and after the last, ``[layers + 1][t]``.
        stream_biases: what the biases from there on contribute, ``[layers + 1]``; with it each row sums to the logit.
        stream_defect: how far the worst row misses it.
        embed: the contribution of the embedding at the position itself.
        attn: of each layer's attention.
        mlp: of each layer's MLP.
        heads: of each query head, ``[layers][heads]``.
        sources: the positions from which each head brings most, of either sign, ``[layers][heads]``.
        attn_bias: what of `attn` is no head's.
        mlp_bias: what of `mlp` is no neuron's.
        final_bias: what is added after the last block.
        component_defect: how far `embed`, `attn`, `mlp` and `final_bias` miss the logit.
        neurons: those of the largest contribution, of either sign.
        spectrum: the singular values that were found, all of them where J was taken whole.
        readings: what the right vector of each singular triplet reads.
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
    readings: list[list[Reading]]


def detail(
    model: Decoder,
    tokenizer: Tokenizer,
    parts: Attribution,
    layers: Streams,
    spectrum: Float[np.ndarray, " n"],
    leading: SVD,
    top: int,
) -> Detail:
    """Gather it, with `top` words of each pole of the `leading` triplets.

    `parts` has sources.
    """
    assert parts.sources is not None
    found = parts.neurons
    return Detail(
        model=model_in_words(model),
        streams=layers.tokens.tolist(),
        stream_biases=layers.bias.tolist(),
        stream_defect=layers.defect,
        embed=parts.embed,
        attn=parts.attn.tolist(),
        mlp=parts.mlp.tolist(),
        heads=parts.heads.tolist(),
        sources=[[_strongest(head) for head in heads] for heads in parts.sources],
        attn_bias=parts.attn_bias.tolist(),
        mlp_bias=parts.mlp_bias.tolist(),
        final_bias=parts.final_bias,
        component_defect=parts.component_defect,
        neurons=[
            Neuron(int(layer), int(index), float(value))
            for layer, index, value in zip(found.layer, found.index, found.contribution, strict=True)
        ],
        spectrum=spectrum.tolist(),
        readings=[_readings(model, tokenizer, v, top) for v in leading.v],
    )


def _readings(model: Decoder, tokenizer: Tokenizer, v: Float[np.ndarray, "t d"], top: int) -> list[Reading]:
    share = np.sum(np.square(v), axis=-1)
    heaviest = np.argsort(-share, kind="stable")[:READINGS]
    heaviest = heaviest[(share[heaviest] >= 0.01) | (np.arange(len(heaviest)) == 0)]
    poles = right_words(model, v[heaviest], top)

    def words(ids: np.ndarray) -> list[str]:
        return [tokenizer.token(int(i)) for i in ids]

    return [
        Reading(int(t), float(share[t]), words(near), words(far))
        for t, near, far in zip(heaviest, np.asarray(poles.positive.ids), np.asarray(poles.negative.ids), strict=True)
    ]


def _strongest(head: Float[np.ndarray, " t"]) -> list[Source]:
    order = np.argsort(-np.abs(head), kind="stable")[:SOURCES]
    return [Source(int(t), float(head[t])) for t in order if head[t]]


def model_in_words(model: Decoder) -> str:
    """The family, depth and width of a model."""
    config = model.config
    return f"{type(model).__name__}, {config.num_hidden_layers} layers, {config.hidden_size} features"
