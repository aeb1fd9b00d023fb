"""Figure 4B: how the leading left vectors of the map to each layer turn to those of the last layer."""

from typing import Any

import numpy as np

from jaxlin.report.paper.figure_4a import layer_colours
from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.subject import Subject


def compute(subject: Subject) -> Data:
    """The cosines of the two leading left vectors of each layer with those of the last."""
    return {"cosines": subject.cumulative["resid_post"].path(2).tolist()}


def caption(data: Data) -> str:
    """What it shows."""
    cosines = np.asarray(data["cosines"])
    depth, first = len(cosines), cosines[0]
    far = [np.flatnonzero(row < 0.5) for row in cosines.T]
    since = [int(row[-1]) + 2 if len(row) else 1 for row in far]
    return (
        f"After layer 1 the two leading left vectors have cosines of {first[0]:.2f} and {first[1]:.2f} with those of "
        f"layer {depth}, the last; the leading one stays within 60° of it from layer {since[0]} on, the second from "
        f"layer {since[1]} on."
    )


def draw(data: Data, figure: Any) -> None:
    """The path of the vectors, with its first and last layer named."""
    figure.set_size_inches(4.4, 3.4)
    axes = figure.subplots()
    cosines = np.asarray(data["cosines"])
    depth = len(cosines)
    colours = layer_colours(figure, axes, depth)
    axes.plot(*cosines.T, color="0.7", linewidth=0.7, zorder=1)
    axes.scatter(*cosines.T, c=[colours(layer) for layer in range(1, depth + 1)], s=18, zorder=2)
    for layer in sorted({1, depth}):
        axes.annotate(
            f"layer {layer}",
            cosines[layer - 1],
            xytext=(-14, 26) if layer == 1 else (0, 8),
            textcoords="offset points",
            fontsize=7,
            ha="center",
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5} if layer == 1 else None,
        )
    for line in (axes.axhline, axes.axvline):
        line(0, color="0.85", linewidth=0.6, zorder=0)
    axes.margins(0.12)
    axes.set_xlabel(r"$u_1^{(l)} \cdot u_1^{(L)}$")
    axes.set_ylabel(r"$u_2^{(l)} \cdot u_2^{(L)}$")


PART = Part("figure_4b", "Path of the leading left vectors through the layers", compute, caption, draw)
