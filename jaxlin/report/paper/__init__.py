"""The paper's figures and tables for any model, with the controls that it lacks. Source: arXiv 2505.24293.

`reproduce` computes each part, writes its numbers to a JSON file and draws it from that file alone; `redraw` draws the
finished parts of a run again.
"""

from jaxlin.report.paper.reproduction import PARTS, STEER, TEXT, check_output, redraw, reproduce
from jaxlin.report.paper.run_folder import PaperError
from jaxlin.report.paper.subject import shipped_phrases

__all__ = ["PARTS", "STEER", "TEXT", "PaperError", "check_output", "redraw", "reproduce", "shipped_phrases"]
