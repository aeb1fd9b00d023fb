"""Results for a reader: one prediction explained, as data, in a terminal, and as a page that needs no network.

`explain` computes an `Explanation`; `page`, `frame` and `write` show it as HTML. `compare` takes the same logit after
two prompts apart. The packages `report.check`, which checks a checkpoint, and `report.paper`, which reproduces the
paper's figures, stand on their own; `report.commands` has the commands of the shell.
"""

from typing import TYPE_CHECKING

from jaxlin.common.lazy_names import lazy_names

if TYPE_CHECKING:
    from jaxlin.report.build import explain
    from jaxlin.report.comparison import Comparison, compare
    from jaxlin.report.explanation import Explanation, Triplet
    from jaxlin.report.html import check_writable, frame, page, write
else:  # as in jaxlin itself
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "jaxlin.report.build": ("explain",),
            "jaxlin.report.comparison": ("Comparison", "compare"),
            "jaxlin.report.explanation": ("Explanation", "Triplet"),
            "jaxlin.report.html": ("check_writable", "frame", "page", "write"),
        },
    )

__all__ = [
    "Comparison",
    "Explanation",
    "Triplet",
    "check_writable",
    "compare",
    "explain",
    "frame",
    "page",
    "write",
]
