"""Exact attribution of a logit: its contributions from tokens, layers, heads and neurons, which sum to it.

`attribute` computes them for one position, `contributions_by_source` splits those of heads by the position attended to,
`stream_contributions` gives those of each token's residual stream at every layer, `experts` those of the experts that
routers chose at every layer and token, `circuit` every edge between heads, MLPs and experts, and `attention_scores` why
a head looked where it did.
"""

from jaxlin.attribution.batches import attribute_batch
from jaxlin.attribution.by_expert import ExpertContributions, experts
from jaxlin.attribution.circuits import AttentionScores, Circuit, ScorePair, attention_scores, circuit
from jaxlin.attribution.head_sources import contributions_by_source
from jaxlin.attribution.layer_streams import StreamContributions, stream_contributions
from jaxlin.attribution.logit import attribute
from jaxlin.attribution.result import Attribution, Experts, Neurons

__all__ = [
    "AttentionScores",
    "Attribution",
    "Circuit",
    "ExpertContributions",
    "Experts",
    "Neurons",
    "ScorePair",
    "StreamContributions",
    "attention_scores",
    "attribute",
    "attribute_batch",
    "circuit",
    "contributions_by_source",
    "experts",
    "stream_contributions",
]
