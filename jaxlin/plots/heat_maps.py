"""Heat maps: numbers on colours, with their labels, and grids with words in the cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.plots.axes import INK, MINUS, PAPER, PLUS, Axes, draw_ticks, fonts, label, resize

MAX_LABELS = 48
"""The rows or columns that have a label each; of more, only some are labelled."""

MAX_NUMBERS = 150
"""The cells up to which each has its number in it."""


@checked
def heat_map(
    ax: Axes,
    matrix: Shaped[np.ndarray, "n m"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    signed: bool = True,
    cell: tuple[float, float] = (0.36, 0.26),
    numbers: bool = True,
) -> None:
    """A matrix as colours: from one colour over white to another, if its numbers have signs, or from white to one.

    Args:
        ax: matplotlib's axes.
        matrix: the numbers; a cell of NaN is left grey.
        rows: the label of each row, the first at the top.
        columns: the label of each column.
        signed: whether zero is in the middle of the colours.
        cell: the width and height of a cell in inches, in a new figure.
        numbers: whether a small matrix has its numbers in the cells.

    Raises:
        JaxlinError: another number of labels than of rows or columns.
    """
    if np.shape(matrix) != (len(rows), len(columns)):
        raise JaxlinError(
            f"Heat map: expected a label for each of {np.shape(matrix)} rows and columns; found {len(rows)} and "
            f"{len(columns)}."
        )
    from matplotlib.colors import LinearSegmentedColormap

    values = np.asarray(matrix, float)
    height, width = values.shape
    finite = values[np.isfinite(values)]
    largest = float(np.max(np.abs(finite), initial=0.0)) or 1.0
    low = -largest if signed else min(0.0, float(np.min(finite, initial=0.0)))
    colours = [MINUS, PAPER, PLUS] if signed else [PAPER, PLUS]
    colour_map = LinearSegmentedColormap.from_list("jaxlin", colours).with_extremes(bad="0.8")
    wide = 0.62 if numbers and values.size <= MAX_NUMBERS else cell[0]
    resize(ax, 2.2 + wide * width, 1.3 + cell[1] * height)
    image = ax.imshow(values, cmap=colour_map, vmin=low, vmax=largest, aspect="auto", interpolation="nearest")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, fraction=0.04)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    draw_ticks(ax.set_yticks, rows, MAX_LABELS, length=32)
    draw_ticks(ax.set_xticks, columns, MAX_LABELS, rotation=90 if max(map(len, columns), default=0) > 3 else 0)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if numbers and values.size <= MAX_NUMBERS:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                _in_cell(ax, i, j, f"{value:.2g}", abs(value) / largest)


@checked
def word_grid(
    ax: Axes,
    words: Sequence[Sequence[str]],
    strength: Shaped[np.ndarray, "n m"],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """A word in each cell, on a colour that is the stronger the larger the number is."""
    heat_map(ax, strength, rows, columns, signed=False, cell=(0.85, 0.26), numbers=False)
    low, high = float(np.nanmin(strength)), float(np.nanmax(strength))
    for i, line in enumerate(words):
        for j, word in enumerate(line):
            _in_cell(ax, i, j, label(word, 11), (float(strength[i, j]) - low) / ((high - low) or 1.0))


def _in_cell(ax: Any, row: int, column: int, text: str, share: float) -> None:
    """A text in a cell, light on a strong colour."""
    colour = "white" if share > 0.75 else INK
    ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour, family=fonts())
