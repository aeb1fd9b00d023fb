"""The paper's figures and tables for any model, with the controls that it lacks. Source: arXiv 2505.24293.

Computing is apart from drawing: every part writes a JSON file with each number that is drawn, and its figure or table
is made from that file alone.
"""

from jaxlin.report.paper.folder import PaperError
from jaxlin.report.paper.run import PARTS, STEER, TEXT, check, paper, redraw
from jaxlin.report.paper.subject import shipped_phrases

__all__ = ["PARTS", "STEER", "TEXT", "PaperError", "check", "paper", "redraw", "shipped_phrases"]
