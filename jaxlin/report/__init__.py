"""Results for a reader: one prediction explained, as data, in a terminal, and as a page that needs no network.

`explain` computes an `Explanation`; `page`, `frame` and `write` show it as HTML. The packages `report.check`, which
checks a checkpoint, and `report.paper`, which reproduces the paper's figures, stand on their own.
"""

from jaxlin.report.build import explain
from jaxlin.report.explanation import Explanation, Triplet
from jaxlin.report.html import check_writable, frame, page, write

__all__ = ["Explanation", "Triplet", "check_writable", "explain", "frame", "page", "write"]
