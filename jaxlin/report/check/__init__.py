"""Checks a checkpoint before its maps are relied on: what it contains, and whether its numbers are right.

`check_model` loads it, tries its tokenizer, compares float32 with float64, a batch with single prompts and the
linearized model with the plain one, measures the residual of a map, and makes sure that the residual grows if a frozen
factor is wrong. On request it compares logits with those of transformers. `terminal` prints the results as they come.
"""

from jaxlin.report.check.checks import check_model
from jaxlin.report.check.results import Line, ModelCheck

__all__ = ["Line", "ModelCheck", "check_model"]
