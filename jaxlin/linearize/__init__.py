"""The exact local linear map of a decoder at one input, and everything that a new analysis of it needs.

`local_map` returns the map as an operator, `layer_maps` and `sweep` return the maps from every layer. A new analysis
combines these parts: `record` runs the model once and returns its `FrozenFactors` and the values at named sites;
`replay` runs the frozen model, which is affine; `pull_back` runs it backward, from a direction of the residual stream
to the gradients at every site; `resolve_target` and `target_direction` make such a direction from words, token ids or
vectors; `dense_from_rows` collects the rows of a large matrix in memory or in a file, which the same call completes
after an interruption. The shortest example is tests/linearize/test_new_analysis.py.
"""

from jaxlin.linearize.backward import Gradients, pull_back, stream_direction, transpose
from jaxlin.linearize.batches import local_map_batch
from jaxlin.linearize.every_layer import layer_maps, sweep
from jaxlin.linearize.frozen import FrozenFactors, Recording, freeze, record, replay
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.residuals import ResidualEstimate
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
    "ResidualEstimate",
    "ResolvedTarget",
    "Target",
    "TargetDirection",
    "Words",
    "dense_from_rows",
    "freeze",
    "layer_maps",
    "local_map",
    "local_map_batch",
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
