"""A check in a terminal: what the checkpoint is, then a line for each check as soon as it is done."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import printable
from jaxlin.report.check.results import Line, ModelCheck

NAME_WIDTH = 33
"""Columns of the names of checks."""

MARKS = {True: ("pass", "green"), False: ("FAIL", "bold red"), None: ("  ? ", "yellow")}


def show_facts(facts: dict[str, str], console: Console) -> None:
    """Print what the checkpoint is."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim")
    for name, fact in facts.items():
        grid.add_row("note" if name.startswith("note ") else name, Text(printable(fact)))
    console.print(Padding(grid, (0, 0, 1, 2)))


def show_line(line: Line, console: Console) -> None:
    """Print one check: pass or fail, its name, the figure and the bar.

    What the figure is stands beside it where there is room; why a check did not pass stands below it.
    """
    mark, style = MARKS[line.passed]
    text = Text("  ").append(mark, style=style).append(f"  {line.name:<{NAME_WIDTH}}")
    if line.bar is not None:
        sign = "≤" if not line.above else "≥" if float(line.bar).is_integer() else ">"
        figure = "" if line.figure is None else _number(line.figure)
        text.append(f"{figure:>8}").append(f"  {sign} {_number(line.bar):<7}", style="dim")
    note = printable(line.note)
    if line.passed is True and len(text) + 2 + len(note) <= console.width:
        text.append(f"  {note}", style="dim")
    text.rstrip()
    console.print(text, soft_wrap=True)
    if note and line.passed is not True:
        console.print(Padding(Text(note, style=style), (0, 0, 0, 8)))


def show_end(check: ModelCheck, console: Console) -> None:
    """Print how many checks passed."""
    outcomes = [line.passed for line in check.lines]
    failed, unknown = outcomes.count(False), outcomes.count(None)
    text = f"\n{outcomes.count(True)} of {len(outcomes)} checks pass"
    text += f", {failed} {'fails' if failed == 1 else 'fail'}" if failed else ""
    text += f", {unknown} could not be compared" if unknown else ""
    console.print(Text(text, style="bold red" if failed else "bold green"))


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.1e}"
