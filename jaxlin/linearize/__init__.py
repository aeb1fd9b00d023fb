"""The exact local linear map of a decoder at one input, and all that a new analysis of it needs.

`local_map` gives the map as an operator, `layer_maps` and `sweep` those from every layer. A new analysis takes the
pieces: `record` runs the model once and returns its `FrozenFactors` with the values at named sites; `replay` runs the
frozen model, which is affine; `pull_back` runs it backward, from a direction of the stream to the gradients at every
site; `resolve_target` and `target_direction` make such a direction from words, token ids or vectors; `dense_from_rows`
collects the rows of a large matrix in memory, or in a file that the same call continues after an interruption.
tests/linearize/test_new_analysis.py is the shortest example.
"""

from jaxlin.linearize.backward import Gradients, pull_back, stream_direction, transpose
from jaxlin.linearize.every_layer import layer_maps, sweep
from jaxlin.linearize.frozen import FrozenFactors, Recording, freeze, record, replay
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.rows import dense_from_rows
from jaxlin.linearize.targets import (
    ResolvedTarget,
    Target,
    TargetDirection,
    Words,
    read_target,
    resolve_target,
    target_direction,
)

__all__ = [
    "FrozenFactors",
    "Gradients",
    "LocalMap",
    "Recording",
    "ResolvedTarget",
    "Target",
    "TargetDirection",
    "Words",
    "dense_from_rows",
    "freeze",
    "layer_maps",
    "local_map",
    "pull_back",
    "read_target",
    "record",
    "replay",
    "resolve_target",
    "stream_direction",
    "sweep",
    "target_direction",
    "transpose",
]
