"""A checkpoint made into a model and a tokenizer, and what it will take in memory before it is read."""

from jaxlin.loading.model import load
from jaxlin.loading.plan import MemoryPlan, memory_plan
from jaxlin.loading.registry import families

__all__ = ["MemoryPlan", "families", "load", "memory_plan"]
