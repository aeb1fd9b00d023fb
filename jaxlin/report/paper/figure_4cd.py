"""Figures 4C and 4D: the stable rank by layer, of the map from the embeddings and of each layer's own map."""

from typing import Any

import numpy as np

from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.style import KINDS, plain_log
from jaxlin.report.paper.subject import Subject
from jaxlin.spectrum.layer_spectra import LayerSpectra, single_layer_spectra


def compute_cumulative(subject: Subject) -> Data:
    """The ranks of the maps from the embeddings; they go through the final norm, frozen at each site."""
    return _ranks(subject.cumulative)


def compute_single(subject: Subject) -> Data:
    """The ranks of the maps from the residual stream that enters a layer."""
    return _ranks(single_layer_spectra(subject.model, subject.x))


def _ranks(by_kind: dict[str, LayerSpectra]) -> Data:
    def listed(ranks: np.ndarray | None) -> list[float | None] | None:
        return None if ranks is None else [float(rank) if np.isfinite(rank) else None for rank in ranks]

    with np.errstate(invalid="ignore"):
        return {
            kind: {
                "stable_rank": listed(spectra.stable_rank),
                "without_first": listed(spectra.stable_rank_without_first),
            }
            for kind, spectra in by_kind.items()
        }


def caption_cumulative(data: Data) -> str:
    """What figure 4C shows."""
    return f"{_course(data, 'the map from the embeddings to the residual stream')}; {_ends(data)}."


def caption_single(data: Data) -> str:
    """What figure 4D shows."""
    return f"{_course(data, 'the map through one layer')}; {_ends(data)}."


def _course(data: Data, name: str) -> str:
    ranks, without = data["resid_post"]["stable_rank"], data["resid_post"]["without_first"]
    first, last, depth = ranks[0], ranks[-1], len(ranks)
    verb = "falls" if last < first else "rises"
    peak = int(np.argmax(ranks))
    ends = f"The stable rank of {name} {verb} from {first:.3g} at layer 1 to {last:.3g} at layer {depth}"
    if peak not in (0, depth - 1):
        ends += f", with its peak, {ranks[peak]:.3g}, at layer {peak + 1}"
    if without is None or without[0] is None or without[-1] is None:
        return ends
    return f"{ends}; without the first token it is {without[0]:.3g} and {without[-1]:.3g} there"


def _ends(data: Data) -> str:
    def ends(kind: str) -> str:
        ranks = [rank for rank in data[kind]["stable_rank"] if rank is not None]
        return f"from {min(ranks):.3g} to {max(ranks):.3g}"

    return f"that of the map to the attention's contribution lies {ends('attn_out')}, to the MLP's {ends('mlp_out')}"


def draw(data: Data, figure: Any) -> None:
    """Three curves, each with the first token and, dotted, without it."""
    figure.set_size_inches(6, 3)
    axes = figure.subplots()
    dotted = False
    for kind, (name, colour) in KINDS.items():
        for ranks, style, label in (
            (data[kind]["stable_rank"], ".-", name),
            (data[kind]["without_first"], ":", None),
        ):
            if ranks is not None:
                values = [np.nan if rank is None else rank for rank in ranks]
                axes.plot(range(1, len(ranks) + 1), values, style, color=colour, label=label, markersize=4)
                dotted |= style == ":"
    if dotted:
        axes.plot([], [], ":", color="0.3", label="without the first token")
    axes.set_yscale("log")
    plain_log(axes.yaxis)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer")
    axes.set_ylabel("stable rank")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


CUMULATIVE = Part(
    "figure_4c", "Stable rank of the map from the embeddings, by layer", compute_cumulative, caption_cumulative, draw
)
SINGLE = Part("figure_4d", "Stable rank of each layer's own map", compute_single, caption_single, draw)
