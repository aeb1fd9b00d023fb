"""jaxlin: the exact local linear map of a language model at one input, as an operator that JAX can transform."""

from jaxlin import causal, lens, spectrum, steering
from jaxlin.attribution import Attribution, attribute
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize import Coefficients, LocalMap, coefficients, layer_maps, linear, local_map, sweep
from jaxlin.loading import MemoryPlan, load, memory_plan
from jaxlin.nn import Decoder
from jaxlin.report import Explanation, explain
from jaxlin.steering import DoseCurve, Generation, dose_curve, generate, generate_all
from jaxlin.tokenizer import Tokenizer

__all__ = [
    "Attribution",
    "Coefficients",
    "Decoder",
    "DoseCurve",
    "Explanation",
    "Generation",
    "JaxlinError",
    "LocalMap",
    "MemoryPlan",
    "Tokenizer",
    "attribute",
    "causal",
    "coefficients",
    "dose_curve",
    "explain",
    "generate",
    "generate_all",
    "layer_maps",
    "lens",
    "linear",
    "load",
    "local_map",
    "memory_plan",
    "spectrum",
    "steering",
    "sweep",
]
