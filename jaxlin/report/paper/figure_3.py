"""Figure 3: the stable rank of each token's map over many short phrases."""

from typing import Any

import numpy as np

from jaxlin.common.progress import progress_bar
from jaxlin.linearize.linalg.gram_matrix import gram_from_rows, singular_values
from jaxlin.linearize.linalg.triplets import stable_rank
from jaxlin.linearize.local_maps import local_map
from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.style import COLOURS, label, plain_log
from jaxlin.report.paper.subject import Subject

NAME = "figure_3"

POSITIONS, BINS = 4, 40
"""The number of positions shown beside the last one, and of bins in the histograms."""


def compute(subject: Subject) -> Data:
    """The stable rank of every token's map, phrase by phrase, so that an interrupted run goes on."""
    phrases = subject.folder.read_progress(NAME)
    bar = progress_bar(
        subject.phrases[len(phrases) :],
        initial=len(phrases),
        total=len(subject.phrases),
        desc="phrases",
        unit="phrase",
        leave=False,
        show=subject.progress,
    )
    for phrase in bar:
        phrases.append(_ranks(subject, phrase))
        subject.folder.write_progress(NAME, phrases)
    return {"phrases": phrases, **_histograms(phrases)}


def _ranks(subject: Subject, phrase: str) -> Data:
    ids = subject.tokenizer.encode(phrase)
    lmap = local_map(subject.model, subject.model.embed(ids))
    parts = gram_from_rows(lmap.rmatvec, lmap.shape, lmap.output.dtype, block=lmap.default_block, each_token=True)
    assert parts.tokens is not None
    ranks = [stable_rank(s) if s[0] > 0 else None for s in map(singular_values, parts.tokens)]
    return {
        "phrase": phrase,
        "tokens": subject.tokenizer.to_str_tokens(ids),
        "stable_rank": ranks,
        "joint_stable_rank": stable_rank(singular_values(parts.joint)),
    }


def _histograms(phrases: list[Data]) -> Data:
    """Histograms of the stable ranks at each position that is not the last of its phrase, and at the last one."""
    groups = {
        f"token {t}": [each["stable_rank"][t] for each in phrases if len(each["stable_rank"]) > t + 1]
        for t in range(POSITIONS)
    } | {"last token": [each["stable_rank"][-1] for each in phrases]}
    firsts = {each["tokens"][0] for each in phrases}
    common = {"token 0": firsts.pop()} if len(firsts) == 1 else {}
    groups = {name: [rank for rank in ranks if rank is not None] for name, ranks in groups.items()}
    groups = {name: ranks for name, ranks in groups.items() if ranks}
    # A rank of 1 may round to just below 1, so ranks are clipped below.
    top = max(rank for ranks in groups.values() for rank in ranks)
    edges = np.geomspace(1, max(top, 1.01) * (1 + 1e-9), BINS + 1)
    return {
        "edges": edges.tolist(),
        "positions": [
            {
                "name": name,
                "token": common.get(name),
                "stable_rank": ranks,
                "mean": float(np.mean(ranks)),
                "deviation": float(np.std(ranks)),
                "median": float(np.median(ranks)),
                "counts": np.histogram(np.clip(ranks, 1, edges[-1]), edges)[0].tolist(),
            }
            for name, ranks in groups.items()
        ],
    }


def caption(data: Data) -> str:
    """What it shows."""
    parts = [
        f"{each['mean']:.3g} ± {each['deviation']:.2g} ({each['name']}"
        + (")" if each["token"] is None else f", always {each['token']!r})")
        for each in data["positions"]
    ]
    return (
        f"Over {len(data['phrases'])} short phrases the stable rank of a token's map is, as mean and standard "
        f"deviation, {', '.join(parts)}."
    )


def draw(data: Data, figure: Any) -> None:
    """A histogram for each position, one above the other."""
    positions = data["positions"]
    figure.set_size_inches(5.6, 0.6 + 0.8 * len(positions))
    rows = figure.subplots(len(positions), 1, sharex=True, squeeze=False)[:, 0]
    for axes, each, colour in zip(rows, positions, COLOURS, strict=False):
        axes.stairs(each["counts"], data["edges"], fill=True, color=colour, alpha=0.75)
        axes.axvline(each["mean"], color="0.2", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.05 * max(each["counts"]))
        axes.yaxis.get_major_locator().set_params(integer=True)
        name = each["name"] if each["token"] is None else f"{each['name']}, {label(each['token'])}"
        numbers = f"{each['mean']:.3g} ± {each['deviation']:.2g}\nn = {len(each['stable_rank'])}"
        axes.text(1.02, 0.9, f"{name}\n{numbers}", transform=axes.transAxes, va="top", fontsize=7)
    axes = rows[-1]
    axes.set_xlim(1, data["edges"][-1])
    plain_log(axes.xaxis)
    axes.set_xlabel("stable rank of the token's map")
    figure.supylabel("phrases", fontsize=8)


PART = Part(NAME, "Stable rank over short phrases", compute, caption, draw)
