r"""Causal checks: what the ordinary model does when the parts that the map finds important are removed or replaced.

The local linear map is exact at one input and makes no promise about its neighbourhood. These functions measure, by
forward passes of the ordinary model, how far its predictions are right: whether the tokens and heads with large
contributions are those whose deletion matters, whether its singular directions carry the prediction, whether it
predicts the effect of values from another prompt, and how fast it fails when the prompt changes. They return NumPy
arrays, and cannot be used within `jax.jit`.
"""

from jaxlin.causal.deleted_tokens import Deletion, deletion
from jaxlin.causal.edges import EdgeAblation, edge_ablation
from jaxlin.causal.heads import HeadAblation, head_ablation, without_heads
from jaxlin.causal.patching import Patching, activation_patching
from jaxlin.causal.units import UnitPatching, unit_patching
from jaxlin.causal.validation import Removal, Validity, removal, validity

__all__ = [
    "Deletion",
    "EdgeAblation",
    "HeadAblation",
    "Patching",
    "Removal",
    "UnitPatching",
    "Validity",
    "activation_patching",
    "deletion",
    "edge_ablation",
    "head_ablation",
    "removal",
    "unit_patching",
    "validity",
    "without_heads",
]
