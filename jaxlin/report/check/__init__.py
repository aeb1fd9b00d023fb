"""What is worth to know of a checkpoint before its maps are believed: what it is, and whether its numbers hold.

`check_model` loads it, looks at its tokenizer, compares float32 with float64, a batch with single prompts and the
linearized model with the plain one, proves the map and sees the proof fail; and, if asked for, compares logits with
transformers'. `show` prints the result as it comes.
"""

from jaxlin.report.check.checks import check_model
from jaxlin.report.check.results import Line, ModelCheck

__all__ = ["Line", "ModelCheck", "check_model"]
