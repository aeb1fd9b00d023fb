"""Curves over a number, and points of two quantities."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from jaxlin.common.arguments import checked
from jaxlin.plots.axes import COLOURS, Axes, fonts, label, resize


@checked
def curves(
    ax: Axes, x: Shaped[np.ndarray, " n"], series: Mapping[str, Shaped[np.ndarray, " n"]], *, log: bool = False
) -> None:
    """One curve for each series; the first is drawn on top of the others, which may be shorter than `x`.

    Args:
        ax: matplotlib's axes.
        x: where the values are.
        series: the values of each curve, by name.
        log: whether the scale of the values is logarithmic.
    """
    resize(ax, 5.6, 3.4)
    for index, (name, values) in enumerate(series.items()):
        numbers = np.asarray(values, float)
        numbers = np.where(numbers > 0, numbers, np.nan) if log else numbers
        marker = "o" if np.isfinite(numbers).sum() <= 30 else None
        style = {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.8 if index == 0 else 1.1}
        ax.plot(x[: len(numbers)], numbers, marker=marker, markersize=3, label=label(name, 40), zorder=-index, **style)
    if log:
        ax.set_yscale("log")
    if len(series) > 1:
        ax.legend(framealpha=0.8, edgecolor="none", prop={"family": fonts(), "size": 7})


@checked
def scatter(ax: Axes, x: Shaped[np.ndarray, "..."], y: Shaped[np.ndarray, "..."]) -> None:
    """Points of two quantities, with the line on which they are equal."""
    resize(ax, 4.4, 4.0)
    both = np.concatenate([np.ravel(x), np.ravel(y)]).astype(float)
    both = both[np.isfinite(both)]
    ends = [float(np.min(both, initial=0.0)), float(np.max(both, initial=0.0))]
    ax.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0)
    ax.scatter(np.ravel(x), np.ravel(y), s=12, color=COLOURS[0], alpha=0.7, linewidths=0)
