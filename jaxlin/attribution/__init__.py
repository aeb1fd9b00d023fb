"""Logits as exact sums: over tokens, layers, heads and neurons, and over the positions that each head reads."""

from jaxlin.attribution.head_sources import sources
from jaxlin.attribution.layer_streams import Streams, streams
from jaxlin.attribution.logit import attribute
from jaxlin.attribution.result import Attribution, Neurons

__all__ = ["Attribution", "Neurons", "Streams", "attribute", "sources", "streams"]
