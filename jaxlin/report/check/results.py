"""The result of a check: a line each, with its figure and its bar."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxlin.common.printable import message


@dataclass(frozen=True)
class Line:
    """One thing that was checked.

    Attributes:
        name: what was checked.
        passed: whether it holds; None where it could not be compared.
        figure: what was measured; None where it is no number.
        bar: what the figure is held to.
        above: whether the figure must be above the bar; else it must be at most the bar.
        note: what the figure is of, or why the line did not pass.
    """

    name: str
    passed: bool | None
    figure: float | None = None
    bar: float | None = None
    above: bool = False
    note: str = ""


@dataclass(frozen=True)
class ModelCheck:
    """What `check_model` gives.

    Attributes:
        name: of the checkpoint.
        facts: what the checkpoint is.
        lines: what was checked, in order.
    """

    name: str
    facts: Mapping[str, str]
    lines: tuple[Line, ...]

    @property
    def passed(self) -> bool:
        """Whether no line failed."""
        return all(line.passed is not False for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return {**asdict(self), "facts": dict(self.facts), "passed": self.passed}


def counted(name: str, passed: bool, figure: int, bar: int, *, above: bool = False, note: str = "") -> Line:
    """A line whose figure is a count or an id."""
    return Line(name, passed, float(figure), float(bar), above, note)


def measured(name: str, bar: float, measure: Callable[[], float], *, above: bool = False, note: str = "") -> Line:
    """A line whose figure `measure` gives. What it raises is what the line failed with, and NaN is above any bar."""
    try:
        figure = float(measure())
    except Exception as error:  # what fails in a broken model, and how, is what is looked for
        return Line(name, False, bar=bar, above=above, note=f"{type(error).__name__}: {message(error)}"[:300])
    holds = figure > bar if above else figure <= bar
    return Line(name, holds, figure, bar, above, note if math.isfinite(figure) else "not a finite number")
