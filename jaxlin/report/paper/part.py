"""What a figure or a table of the paper is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlin.report.paper.subject import Subject

Data = dict[str, Any]
"""Plain Python values: what a part's JSON file holds, and all that it is drawn from."""


class Part(NamedTuple):
    """A figure or a table.

    Attributes:
        name: of its files.
        title: what it shows.
        compute: its numbers.
        caption: one sentence that says what they show, from the numbers.
        draw: draws them on a matplotlib figure; None for a table.
        markdown: writes them as a table; None for a figure.
    """

    name: str
    title: str
    compute: Callable[[Subject], Data]
    caption: Callable[[Data], str]
    draw: Callable[[Data, Any], None] | None = None
    markdown: Callable[[Data], str] | None = None
