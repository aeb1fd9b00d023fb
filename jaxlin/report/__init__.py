"""Results for a reader: an explanation of one prediction as data, in a terminal and as a page that asks for nothing."""

from jaxlin.report.build import explain
from jaxlin.report.explanation import Explanation, Triplet
from jaxlin.report.html import check_writable, frame, page, write

__all__ = ["Explanation", "Triplet", "check_writable", "explain", "frame", "page", "write"]
