"""Bars: a number for each of some labels, and a number for each token, over the text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from jaxlin.common.arguments import checked
from jaxlin.plots.axes import COLOURS, MINUS, PLUS, Axes, draw_ticks, fonts, label, resize

MAX_BARS = 60
"""The bars that have a label each; of more, only some are labelled."""


@checked
def bars(ax: Axes, values: Shaped[np.ndarray, " n"], labels: Sequence[str]) -> None:
    """Horizontal bars, the first at the top; positive and negative ones differ in colour."""
    numbers = np.asarray(values, float)
    places = np.arange(len(numbers))
    resize(ax, 5.0, 0.8 + 0.22 * len(numbers))
    ax.barh(places, np.nan_to_num(numbers), color=[PLUS if value >= 0 else MINUS for value in numbers], height=0.8)
    ax.set_ylim(len(numbers) - 0.4, -0.6)
    ax.axvline(0, color="0.3", linewidth=0.6)
    draw_ticks(ax.set_yticks, labels, MAX_BARS, length=32)


@checked
def token_bars(ax: Axes, series: Mapping[str, Float[np.ndarray, " t"]], tokens: Sequence[str]) -> None:
    """Vertical bars over the tokens of a prompt, side by side where there are several series."""
    count = len(tokens)
    resize(ax, 1.4 + 0.34 * count, 3.0)
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        numbers = np.asarray(values, float)
        places = np.arange(len(numbers)) + (index - (len(series) - 1) / 2) * width
        colour: Any = COLOURS[index % len(COLOURS)]
        if len(series) == 1:
            colour = [PLUS if value >= 0 else MINUS for value in numbers]
        ax.bar(places, np.nan_to_num(numbers), width, color=colour, label=label(name, 40))
    ax.axhline(0, color="0.3", linewidth=0.6)
    ax.set_xlim(-0.6, count - 0.4)
    is_crowded = count > 6 or sum(map(len, tokens)) > 40
    draw_ticks(ax.set_xticks, tokens, MAX_BARS, rotation=90 if is_crowded else 0)
    if len(series) > 1:
        ax.legend(fontsize=7, frameon=False, prop={"family": fonts(), "size": 7})
