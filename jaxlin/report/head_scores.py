"""Why the heads of a drawn circuit looked where they did, as far as a page shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from jaxlin.attribution.circuits.score_result import AttentionScores
from jaxlin.attribution.circuits.scores import has_scores, scores_of_heads
from jaxlin.linearize.frozen import rule_of
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import Embeddings
from jaxlin.results import Result

PAIRS = 6
"""The pairs of components that are listed for a head."""


@dataclass(frozen=True, eq=False)
class HeadScore(Result):
    """The score of a head at a token that it writes to and one that it reads, those with most if it sees one there.

    Attributes:
        query: the position that looks.
        key: the position that is looked at.
        probability: the attention that the key gets.
        score: the score, less the mean over the keys that the query sees.
        pairs: the largest parts of that, each with the component that the query has it from and that of the key.
        others: the sum of all other parts.
    """

    query: int
    key: int
    probability: float
    score: float
    pairs: list[tuple[str, str, float]]
    others: float


class Reading(NamedTuple):
    """A head, and where it reads and writes.

    Attributes:
        layer: its layer.
        number: its number in the layer.
        queries: positions that it writes to, that with most first.
        keys: positions that it reads, likewise.
    """

    layer: int
    number: int
    queries: Sequence[int]
    keys: Sequence[int]


def head_scores(model: Decoder, x: Float[Embeddings, "t d"], heads: Sequence[Reading]) -> list[HeadScore | None]:
    """The score of each head, at its first query that sees one of its keys; None where none does, or has no scores."""
    asked = [_looking(model, head) for head in heads]
    results = iter(scores_of_heads(model, x, [each for each in asked if each is not None], rule_of(model, None)))
    return [None if each is None else _shortened(next(results)) for each in asked]


def _looking(model: Decoder, head: Reading) -> tuple[int, int, int, int] | None:
    if not has_scores(model, head.layer):
        return None
    for query in head.queries:
        first = max(0, int(model.config.first_visible(jnp.asarray([query]))[head.layer, 0]))
        for key in head.keys:
            if first <= key <= query:
                return head.layer, head.number, query, key
    return None


def _shortened(scores: AttentionScores) -> HeadScore:
    score, pairs = scores.score - scores.baseline, scores.top(PAIRS)
    return HeadScore(
        query=scores.query,
        key=scores.key,
        probability=scores.probability,
        score=score,
        pairs=[(pair.query, pair.key, pair.effect) for pair in pairs],
        others=score - sum(pair.effect for pair in pairs),
    )
