r"""Causal checks: what the untouched model does when what the map points at is taken away.

The local linear map is exact at one input and says nothing of its neighbourhood. These functions measure, by forward
passes of the ordinary model, how far its account holds: whether the tokens and the heads it credits are those whose
deletion matters, whether its singular directions carry the prediction, whether it says what another prompt's values do,
and how soon it fails when the prompt changes. They return NumPy's arrays, and are not for use within `jax.jit`.
"""

from jaxlin.causal.heads import HeadAblation, head_ablation, without_heads
from jaxlin.causal.patching import Patching, activation_patching
from jaxlin.causal.validation import Deletion, Removal, Validity, deletion, removal, validity

__all__ = [
    "Deletion",
    "HeadAblation",
    "Patching",
    "Removal",
    "Validity",
    "activation_patching",
    "deletion",
    "head_ablation",
    "removal",
    "validity",
    "without_heads",
]
