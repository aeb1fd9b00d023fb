"""jaxlin: the exact local linear map of a language model at one input, as an operator that JAX can transform."""

from jaxlin import causal, lens, spectrum, steering
from jaxlin.activations import Activations, record, record_batch, with_edits
from jaxlin.attribution import Attribution, Circuit, attribute, attribute_batch, circuit
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize import FrozenFactors, LocalMap, freeze, layer_maps, local_map, local_map_batch, replay, sweep
from jaxlin.loading import MemoryPlan, load, memory_plan
from jaxlin.nn import Decoder
from jaxlin.report import Explanation, explain
from jaxlin.steering import DoseCurve, Generation, dose_curve, generate, generate_batch
from jaxlin.tokenizer import Tokenizer

__all__ = [
    "Activations",
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
