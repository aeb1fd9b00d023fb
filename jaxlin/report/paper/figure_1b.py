"""Figure 1B: the output against its reconstructions by the local linear map and by the ordinary Jacobian."""

from typing import Any

import numpy as np

from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.subject import Subject
from jaxlin.spectrum.null_baselines import ordinary_product


def compute(subject: Subject) -> Data:
    """The features of the output and of both reconstructions; the map's is computed from its dense J."""
    lmap, output = subject.lmap, subject.output
    flat = subject.jacobian.reshape(len(output), -1)
    local_map = flat @ np.asarray(lmap.x, np.float64).reshape(-1) + np.asarray(lmap.bias)
    ordinary = np.asarray(ordinary_product(lmap.model, lmap.x, lmap.position))
    return {
        "tokens": subject.tokens,
        "output": output.tolist(),
        "local_map": local_map.tolist(),
        "ordinary": ordinary.tolist(),
        "residual_local_map": lmap.residual_of(subject.jacobian),
        "residual_ordinary": float(np.linalg.norm(ordinary - output) / np.linalg.norm(output)),
        "bias_share": float(np.linalg.norm(lmap.bias) / np.linalg.norm(output)),
    }


def caption(data: Data) -> str:
    """What it shows."""
    return (
        f"The local linear map reconstructs the model's output with a residual of {data['residual_local_map']:.1e} of "
        f"the output's norm; the ordinary Jacobian misses it by {data['residual_ordinary']:.2g} of that norm."
    )


def draw(data: Data, figure: Any) -> None:
    """Two panels, because the errors differ by orders of magnitude."""
    figure.set_size_inches(6.6, 3.2)
    output = data["output"]
    span = [min(output), max(output)]
    for axes, name, title, colour in zip(
        figure.subplots(1, 2),
        ("local_map", "ordinary"),
        ("local linear map,  $Jx + b$", "ordinary Jacobian,  $(\\partial f/\\partial x)\\,x$"),
        ("#d55e00", "#0072b2"),
        strict=True,
    ):
        axes.plot(span, span, color="0.6", linewidth=0.6, zorder=0)
        axes.scatter(output, data[name], s=6, color=colour, alpha=0.5, linewidths=0, rasterized=False)
        axes.set_title(f"{title}\nresidual {data[f'residual_{name}']:.2g}")
        axes.set_xlabel("feature of the output $f(x)$")
        axes.set_ylabel("reconstructed")


PART = Part("figure_1b", "Reconstruction of the output", compute, caption, draw)
