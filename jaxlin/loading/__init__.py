"""Checkpoints become models: `load` makes a model and a tokenizer, `memory_plan` says how much memory they will take.

`jaxlin.loading.registry` names the family file of each `model_type`, and is the only file of ``jaxlin/`` that does.
"""

from jaxlin.loading.model import load
from jaxlin.loading.plan import MemoryPlan, memory_plan
from jaxlin.loading.registry import families

__all__ = ["MemoryPlan", "families", "load", "memory_plan"]
