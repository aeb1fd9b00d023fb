"""Exact circuits: the frozen model as a flow network, with every node and edge on the way to a logit.

`circuit` computes all of them at once. A `Circuit` is conserved at every node, and can be pruned, followed and drawn.
Its edges run through the values of attention; `attention_scores` says why a head looked where it did.
"""

from jaxlin.attribution.circuits.network import Path
from jaxlin.attribution.circuits.result import Circuit, Edge
from jaxlin.attribution.circuits.score_result import AttentionScores, ScorePair
from jaxlin.attribution.circuits.scores import attention_scores
from jaxlin.attribution.circuits.tracing import circuit

__all__ = ["AttentionScores", "Circuit", "Edge", "Path", "ScorePair", "attention_scores", "circuit"]
