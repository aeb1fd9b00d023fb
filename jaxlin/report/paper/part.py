"""A part of the paper: a figure or a table."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlin.report.paper.subject import Subject

Data = dict[str, Any]
"""Plain Python values: the content of a part's JSON file, from which alone the part is drawn."""


class Part(NamedTuple):
    """A figure or a table.

    Attributes:
        name: the name of its files, without their suffix.
        title: what it shows.
        compute: computes its data.
        caption: writes a sentence that says what the data show.
        draw: draws the data on a matplotlib figure; None for a table.
        markdown: writes the data as a Markdown table; None for a figure.
    """

    name: str
    title: str
    compute: Callable[[Subject], Data]
    caption: Callable[[Data], str]
    draw: Callable[[Data, Any], None] | None = None
    markdown: Callable[[Data], str] | None = None
