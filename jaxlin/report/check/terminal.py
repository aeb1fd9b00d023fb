"""A check in a terminal: what the checkpoint is, then a line as each is measured."""

from rich.console import Console
from rich.text import Text

from jaxlin.common.printable import printable
from jaxlin.report.check.results import Line, ModelCheck

LABEL, NAME = 10, 33
"""Columns of the names of facts, and of lines."""

MARKS = {True: ("pass", "green"), False: ("FAIL", "bold red"), None: ("  ? ", "yellow")}


def show_facts(facts: dict[str, str], console: Console) -> None:
    """Print what the checkpoint is."""
    for name, fact in facts.items():
        label = "note" if name.startswith("note ") else name
        _indented(Text(printable(fact)), console, f"  {label:<{LABEL}}")
    console.print()


def show_line(line: Line, console: Console) -> None:
    """Print one line: pass or fail, what, the figure and its bar.

    What the figure is of stands beside it where there is room; why a line did not pass, below it.
    """
    mark, style = MARKS[line.passed]
    text = Text("  ").append(mark, style=style).append(f"  {line.name:<{NAME}}")
    if line.bar is not None:
        sign = "≤" if not line.above else "≥" if float(line.bar).is_integer() else ">"
        figure = "" if line.figure is None else _number(line.figure)
        text.append(f"{figure:>8}").append(f"  {sign} {_number(line.bar):<7}", style="dim")
    note = printable(line.note)
    beside = line.passed is True and len(text) + 2 + len(note) <= console.width
    if beside:
        text.append(f"  {note}", style="dim")
    text.rstrip()
    console.print(text, soft_wrap=True)
    if note and line.passed is not True:
        _indented(Text(note, style=style), console, " " * 8)


def _indented(text: Text, console: Console, label: str) -> None:
    """Print a text in lines as long as there is room beside a label, and the label before the first."""
    for i, line in enumerate(text.wrap(console, max(20, console.width - len(label)))):
        line.rstrip()
        console.print(Text(label if i == 0 else " " * len(label), style="dim").append_text(line), soft_wrap=True)


def show_end(check: ModelCheck, console: Console) -> None:
    """Print how many lines pass."""
    outcomes = [line.passed for line in check.lines]
    failed, unknown = outcomes.count(False), outcomes.count(None)
    text = f"\n{outcomes.count(True)} of {len(outcomes)} pass"
    text += f", {failed} {'fails' if failed == 1 else 'fail'}" if failed else ""
    text += f", {unknown} could not be compared" if unknown else ""
    console.print(Text(text, style="bold red" if failed else "bold green"))


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.1e}"
