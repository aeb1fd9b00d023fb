"""Exact attribution of a logit: its contributions from tokens, layers, heads and neurons, which sum to it.

`attribute` computes them for one position, `contributions_by_source` splits those of heads by the position attended to,
and `stream_contributions` gives those of each token's residual stream at every layer.
"""

from jaxlin.attribution.head_sources import contributions_by_source
from jaxlin.attribution.layer_streams import StreamContributions, stream_contributions
from jaxlin.attribution.logit import attribute
from jaxlin.attribution.result import Attribution, Neurons

__all__ = [
    "Attribution",
    "Neurons",
    "StreamContributions",
    "attribute",
    "contributions_by_source",
    "stream_contributions",
]
