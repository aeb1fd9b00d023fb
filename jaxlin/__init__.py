"""jaxlin: the exact local linear map of a language model at one input, as an operator that JAX can transform."""

from jaxlin import baselines, causal, lens, steering, words
from jaxlin.attribution import Attribution, attribute
from jaxlin.decoder import Decoder
from jaxlin.errors import JaxlinError
from jaxlin.explain import explain
from jaxlin.explanation import Explanation
from jaxlin.generation import Generation, generate, generate_all
from jaxlin.held import Coefficients, coefficients, linear
from jaxlin.load import load
from jaxlin.local_map import local_map
from jaxlin.map_operator import LocalMap
from jaxlin.plan import MemoryPlan, memory_plan
from jaxlin.steering import DoseCurve, dose_curve
from jaxlin.sweep import layer_maps, sweep
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
    "baselines",
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
    "steering",
    "sweep",
    "words",
]
