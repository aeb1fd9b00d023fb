"""Results as web pages: one file each, with no network, for a browser or a notebook."""

from jaxlin.report.page import check_writable, frame, page, write
from jaxlin.report.tables import tables

__all__ = ["check_writable", "frame", "page", "tables", "write"]
