"""jaxlin: the exact local linear map of a language model at one input, as an operator that JAX can transform."""

from typing import TYPE_CHECKING

from jaxlin.common.lazy_names import lazy_names

if TYPE_CHECKING:
    from jaxlin import causal, lens, spectrum, steering
    from jaxlin.activations import Activations, record, record_batch, with_edits
    from jaxlin.attribution import (
        AttentionScores,
        Attribution,
        Circuit,
        attention_scores,
        attribute,
        attribute_batch,
        circuit,
    )
    from jaxlin.common.errors import JaxlinError
    from jaxlin.linearize import FrozenFactors, LocalMap, freeze, layer_maps, local_map, local_map_batch, replay, sweep
    from jaxlin.loading import MemoryPlan, load, memory_plan
    from jaxlin.nn import Decoder
    from jaxlin.report import Explanation, explain
    from jaxlin.steering import DoseCurve, Generation, dose_curve, generate, generate_batch
    from jaxlin.tokenizer import Tokenizer
else:  # the names that type checkers read above, each imported when it is first used: all take seconds
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "jaxlin.activations": ("Activations", "record", "record_batch", "with_edits"),
            "jaxlin.attribution": (
                "AttentionScores",
                "Attribution",
                "Circuit",
                "attention_scores",
                "attribute",
                "attribute_batch",
                "circuit",
            ),
            "jaxlin.common.errors": ("JaxlinError",),
            "jaxlin.linearize": (
                "FrozenFactors",
                "LocalMap",
                "freeze",
                "layer_maps",
                "local_map",
                "local_map_batch",
                "replay",
                "sweep",
            ),
            "jaxlin.loading": ("MemoryPlan", "load", "memory_plan"),
            "jaxlin.nn": ("Decoder",),
            "jaxlin.report": ("Explanation", "explain"),
            "jaxlin.steering": ("DoseCurve", "Generation", "dose_curve", "generate", "generate_batch"),
            "jaxlin.tokenizer": ("Tokenizer",),
        },
    )

__all__ = [
    "Activations",
    "AttentionScores",
    "Attribution",
    "Circuit",
    "Decoder",
    "DoseCurve",
    "Explanation",
    "FrozenFactors",
    "Generation",
    "JaxlinError",
    "LocalMap",
    "MemoryPlan",
    "Tokenizer",
    "attention_scores",
    "attribute",
    "attribute_batch",
    "causal",
    "circuit",
    "dose_curve",
    "explain",
    "freeze",
    "generate",
    "generate_batch",
    "layer_maps",
    "lens",
    "load",
    "local_map",
    "local_map_batch",
    "memory_plan",
    "record",
    "record_batch",
    "replay",
    "spectrum",
    "steering",
    "sweep",
    "with_edits",
]
