"""The results of checks: for each a line, with the figure that was measured and its bar."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxlin import plots
from jaxlin.common.printable import message
from jaxlin.results import Result, html
from jaxlin.results.tables import stacked


@dataclass(frozen=True, eq=False)
class Line(Result):
    """One thing that was checked.

    Attributes:
        name: what was checked.
        passed: whether the check passed; None if it could not be made.
        figure: the number that was measured; None if there is none.
        bar: the limit for the figure.
        above: whether the figure must be above the bar; else it must be at most the bar.
        note: what the figure is, or why the check did not pass.
    """

    name: str
    passed: bool | None
    figure: float | None = None
    bar: float | None = None
    above: bool = False
    note: str = ""


@dataclass(frozen=True, eq=False)
class ModelCheck(Result):
    """The result of `check_model`.

    Attributes:
        name: the name of the checkpoint.
        facts: what the checkpoint is, by name.
        lines: the checks, in order.
    """

    PROPERTIES: ClassVar = ("passed",)

    name: str
    facts: Mapping[str, str]
    lines: tuple[Line, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(line.passed is not False for line in self.lines)

    def tables(self) -> list[dict[str, Any]]:
        """A row for each check."""
        return [stacked([{key: [value] for key, value in line.values().items()} for line in self.lines])]

    def _draw(self, ax: Any) -> None:
        """How far each figure is below its bar, in powers of ten: to the right of zero the check passes."""
        lines = [line for line in self.lines if line.figure and line.bar and not line.above]
        distances = [np.log10(line.bar / line.figure) for line in lines if line.figure and line.bar]
        plots.bars(ax, np.array(distances), [line.name for line in lines])
        plots.write(ax, title=f"Checks of {self.name}", xlabel="bar / figure, in powers of ten; above 0 passes")

    def _repr_html_(self) -> str:
        """A row for each check."""
        return html.heading(self) + html.rows(self, self.tables()[0])


def counted(name: str, passed: bool, figure: int, bar: int, *, above: bool = False, note: str = "") -> Line:
    """The line of a check whose figure is a count or an id."""
    return Line(name, passed, float(figure), float(bar), above, note)


def measured(name: str, bar: float, measure: Callable[[], float], *, above: bool = False, note: str = "") -> Line:
    """The line of a check whose figure `measure` computes. If that raises an error or gives NaN, the check fails."""
    try:
        figure = float(measure())
    except Exception as error:  # any error of a broken model is a result of the check
        return Line(name, False, bar=bar, above=above, note=f"{type(error).__name__}: {message(error)}"[:300])
    passed = figure > bar if above else figure <= bar
    return Line(name, passed, figure, bar, above, note if math.isfinite(figure) else "not a finite number")
