"""Figure 2B: the spectrum of each token's map, and words for its leading singular vectors."""

from typing import Any

import numpy as np

from jaxlin.linearize.linalg.triplets import SVD, stable_rank, svd
from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.style import COLOURS, label, labels, over_words, plain_log, text_table, token_legend
from jaxlin.report.paper.subject import Subject
from jaxlin.spectrum.words import triplet_words

VALUES, TRIPLETS, WORDS = 24, 3, 6
"""The number of singular values of each token, of triplets that are decoded, and of words for each pole."""


def compute(subject: Subject) -> Data:
    """The SVD of each token's map; the signs of its vectors are chosen by the output."""
    maps = []
    for t in range(len(subject.tokens)):
        triplets = svd(subject.jacobian[:, t : t + 1])
        k = min(TRIPLETS, len(triplets.s))
        first = SVD(triplets.u[:, :k], triplets.s[:k], triplets.v[:k])
        words = triplet_words(subject.model, first, subject.output, min(WORDS, subject.model.config.vocab_size))
        maps.append(
            {
                "values": triplets.s[:VALUES].tolist(),
                "stable_rank": stable_rank(triplets.s) if triplets.s[0] > 0 else None,
                "promotes": subject.words(words.left.positive.ids.tolist()),
                "demotes": subject.words(words.left.negative.ids.tolist()),
                "reads": subject.words(words.right.positive.ids[:, 0].tolist()),
                "reads_against": subject.words(words.right.negative.ids[:, 0].tolist()),
            }
        )
    return {"tokens": subject.tokens, "maps": maps}


def caption(data: Data) -> str:
    """What it shows."""
    tops = [token_map["values"][0] for token_map in data["maps"]]
    largest, smallest, last = int(np.argmax(tops)), int(np.argmin(tops)), data["maps"][-1]
    return (
        f"The largest singular value of a token's map goes from {tops[smallest]:.3g} ({data['tokens'][smallest]!r}) to "
        f"{tops[largest]:.3g} ({data['tokens'][largest]!r}); of the last token, {data['tokens'][-1]!r}, the leading "
        f"left vector promotes {last['promotes'][0][0]!r} most, the leading right vector lies nearest to "
        f"{last['reads'][0][0]!r}, and value {len(last['values'])} is "
        f"{last['values'][-1] / (last['values'][0] or 1):.2g} of the first."
    )


def draw(data: Data, figure: Any) -> None:
    """The spectra above, the words below."""
    (axes,), below, shown = over_words(figure, len(data["tokens"]))
    for colour, t in zip(COLOURS, shown, strict=False):
        values = data["maps"][t]["values"]
        name = f"{t} {label(data['tokens'][t])}"
        axes.plot(range(1, len(values) + 1), values, ".-", markersize=4, color=colour, label=name)
    axes.set_yscale("log")
    plain_log(axes.yaxis)
    axes.set_xlabel("singular value of the token's map, the largest first")
    axes.set_ylabel("$\\sigma$")
    token_legend(axes)
    rows = [
        [
            label(data["tokens"][t]),
            f"{token_map['values'][0]:.3g}",
            "–" if token_map["stable_rank"] is None else f"{token_map['stable_rank']:.3g}",
            labels(token_map["promotes"][0], 38),
            labels(token_map["reads"][0], 44),
        ]
        for t in shown
        for token_map in (data["maps"][t],)
    ]
    heads = ("input token", "$\\sigma_1$", "stable rank", "the leading left vector promotes", "the right one reads")
    text_table(below, heads, rows, (0.0, 0.14, 0.21, 0.33, 0.68))


PART = Part("figure_2b", "The spectrum of each token's map", compute, caption, draw)
