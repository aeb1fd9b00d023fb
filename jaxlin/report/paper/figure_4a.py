"""Figure 4A: the spectrum of the map from the embeddings to each layer, all tokens together."""

from typing import Any

import numpy as np

from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.style import plain_log
from jaxlin.report.paper.subject import Subject

VALUES = 48
"""The number of singular values of each layer."""


def compute(subject: Subject) -> Data:
    """Ratios to the largest singular value; the maps go through the final norm, frozen at each layer's stream."""
    s = subject.cumulative["resid_post"].s
    return {"first": s[:, 0].tolist(), "ratios": (s[:, :VALUES] / s[:, :1]).tolist()}


def caption(data: Data) -> str:
    """What it shows."""
    ratios = data["ratios"]
    return (
        f"Singular value {len(ratios[0])} is {ratios[0][-1]:.2g} of the largest one after layer 1, and "
        f"{ratios[-1][-1]:.2g} of it after layer {len(ratios)}, the last."
    )


def draw(data: Data, figure: Any) -> None:
    """A curve for each layer, from dark to light."""
    figure.set_size_inches(4.4, 3.2)
    axes = figure.subplots()
    depth = len(data["ratios"])
    colours = layer_colours(figure, axes, depth)
    for layer, ratios in enumerate(data["ratios"]):
        axes.plot(range(1, len(ratios) + 1), ratios, color=colours(layer + 1), linewidth=0.9)
    axes.set_yscale("log")
    plain_log(axes.yaxis)
    axes.set_xlabel("singular value, the largest first")
    axes.set_ylabel(r"$\sigma_i / \sigma_1$, embeddings to layer")


def layer_colours(figure: Any, axes: Any, depth: int) -> Any:
    """The colour of each layer, counted from 1, and a colour bar."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    scale = ScalarMappable(Normalize(1, max(depth, 2)), colormaps["viridis"])
    bar = figure.colorbar(scale, ax=axes, label="layer", aspect=30)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    bar.outline.set_visible(False)
    return lambda layer: scale.to_rgba(np.asarray(float(layer)))


PART = Part("figure_4a", "Spectrum of the map from the embeddings to each layer", compute, caption, draw)
