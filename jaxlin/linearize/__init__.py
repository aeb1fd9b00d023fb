"""The exact local linear map of a decoder at one input: recorded, replayed, transposed, and as an operator."""

from jaxlin.linearize.every_layer import layer_maps, sweep
from jaxlin.linearize.frozen import FrozenFactors, freeze, replay
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.targets import Target, Words

__all__ = [
    "FrozenFactors",
    "LocalMap",
    "Target",
    "Words",
    "freeze",
    "layer_maps",
    "local_map",
    "replay",
    "sweep",
]
