"""The paper's figures and tables for any model, with the controls that it lacks. Source: arXiv 2505.24293.

Computing is apart from drawing: every part writes a JSON file with each number that is drawn, and its figure or table
is made from that file alone.
"""

from jaxlin.report.paper.reproduction import PARTS, STEER, TEXT, check_output, redraw, reproduce
from jaxlin.report.paper.run_folder import PaperError
from jaxlin.report.paper.subject import shipped_phrases

__all__ = ["PARTS", "STEER", "TEXT", "PaperError", "check_output", "redraw", "reproduce", "shipped_phrases"]
