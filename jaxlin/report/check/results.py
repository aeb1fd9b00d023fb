"""The results of checks: for each a line, with the figure that was measured and its bar."""

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


@dataclass(frozen=True)
class ModelCheck:
    """The result of `check_model`.

    Attributes:
        name: the name of the checkpoint.
        facts: what the checkpoint is, by name.
        lines: the checks, in order.
    """

    name: str
    facts: Mapping[str, str]
    lines: tuple[Line, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(line.passed is not False for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return {**asdict(self), "facts": dict(self.facts), "passed": self.passed}


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
