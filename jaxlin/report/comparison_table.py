"""A `Comparison` in a terminal."""

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import printable
from jaxlin.common.token_names import left_to_right
from jaxlin.report.comparison import Comparison
from jaxlin.report.terminal import bar

BAR = 20
"""Columns of the longest bar, where there is room."""

BORDERS = 16
"""Columns of the borders of the table of tokens, and the space beside them."""

HEADS = 5
"""The heads that are listed."""


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the contributions in both prompts beside each other, and the heads that differ most."""
    for label, prompt, probability in zip("AB", comparison.prompts, comparison.probability, strict=True):
        text = Text(f"{label}  ", style="dim").append(printable(prompt), style="bold not dim")
        name = left_to_right(_target(comparison))
        console.print(text.append(f"  {name} {probability:.1%}", style="not bold dim"))
    console.print()
    console.print(_tokens(comparison, console.width))
    console.print()
    console.print(_heads(comparison))


def _target(comparison: Comparison) -> str:
    return comparison.subject.removeprefix("the logit of ").partition(" minus ")[0]


def _tokens(comparison: Comparison, width: int) -> Table:
    numbers = " and ".join(f"{value:.4f}" for value in comparison.logit)
    table = Table(title=Text(f"Contributions to {comparison.subject} ({numbers})"), title_justify="left")
    table.add_column("in A")
    table.add_column("in B")
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right", no_wrap=True)
    names = [[left_to_right(name) for name in row] for row in comparison.names]
    differences = comparison.differences
    change = comparison.bias[1] - comparison.bias[0]
    sums = np.nansum(comparison.contributions, axis=0) + comparison.bias
    columns_of_numbers = [np.append(comparison.contributions[:, side], sums[side]) for side in (0, 1)]
    columns_of_numbers.append(np.append(differences, sums[1] - sums[0]))
    room = width - sum(max(map(cell_len, column)) for column in zip(*names, strict=True)) - BORDERS

    def taken(digits: int) -> int:
        return sum(max(len(f"{value:+.{digits}f}") for value in np.nan_to_num(each)) for each in columns_of_numbers)

    digits = next((each for each in (4, 3, 2) if taken(each) <= room), 1)
    columns = min(BAR, room - taken(digits) - 3)
    if columns > 2:
        table.add_column("")
    longest = max(np.abs(differences).max(), abs(change)) or 1.0

    def add_row(first: str, second: str, values: np.ndarray, difference: float) -> None:
        written = ["" if np.isnan(value) else f"{value:+.{digits}f}" for value in values]
        drawn = [bar(difference, longest, columns)] if columns > 2 else []
        table.add_row(Text(first), Text(second), *written, f"{difference:+.{digits}f}", *drawn)

    for row, values, difference in zip(names, comparison.contributions, differences, strict=True):
        add_row(row[0], row[1], values, difference)
    if np.any(comparison.bias):
        add_row("biases", "biases", comparison.bias, change)
    table.add_section()
    table.add_row("sum", "", *(f"{value:+.{digits}f}" for value in (*sums, sums[1] - sums[0])))
    return table


def _heads(comparison: Comparison) -> Table:
    listed = comparison.largest_heads(HEADS)
    title = "Heads that differ most, by their direct paths"
    table = Table(title=title, title_justify="left")
    for name in ("layer", "head", "A", "B", "B - A"):
        table.add_column(name, justify="right")
    for layer, head, first, second in listed:
        table.add_row(str(layer), str(head), f"{first:+.4f}", f"{second:+.4f}", f"{second - first:+.4f}")
    return table
