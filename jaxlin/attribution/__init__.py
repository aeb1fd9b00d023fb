"""Logits as exact sums: over tokens, layers, heads and neurons, and over the positions that each head reads."""

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
