r"""Figure 2A: the norms of the columns and rows of each token's map, and words for the largest ones.

Rows are sorted by their own norms. Signs are chosen by the output $f$: that of a column $c$ so that $c \cdot f \ge 0$,
that of the row of feature $i$ as the sign of $f_i$.
"""

from typing import Any

import numpy as np

from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.style import COLOURS, label, labels, over_words, plain_log, text_table, token_legend
from jaxlin.report.paper.subject import Subject
from jaxlin.spectrum.word_results import Features
from jaxlin.spectrum.words import largest_columns, largest_rows

FEATURES, WORDS = 4, 6
"""The number of columns and rows of each token that are decoded, and of words for each."""


def compute(subject: Subject) -> Data:
    """All norms, and words for both poles of the largest columns and rows."""
    jacobian, output, model = subject.jacobian, subject.output, subject.model
    count, k = min(FEATURES, len(output)), min(WORDS, model.config.vocab_size)
    columns, rows = largest_columns(model, jacobian, count, k), largest_rows(model, jacobian, count, k)
    along = np.einsum("dte,d->te", jacobian, output)
    return {
        "tokens": subject.tokens,
        "column_norms": np.linalg.norm(jacobian, axis=0).tolist(),
        "row_norms": np.linalg.norm(jacobian, axis=-1).T.tolist(),
        "columns": _decoded(subject, columns, np.take_along_axis(along, columns.features, axis=-1) < 0),
        "rows": _decoded(subject, rows, output[rows.features] < 0),
    }


def _decoded(subject: Subject, vectors: Features, is_negative: np.ndarray) -> list[list[Data]]:
    def one(t: int, m: int) -> Data:
        words, opposite = (subject.words(pole.ids[t, m].tolist()) for pole in vectors.words)
        if is_negative[t, m]:
            words, opposite = opposite, words
        feature, norm = int(vectors.features[t, m]), float(vectors.norms[t, m])
        return {"feature": feature, "norm": norm, "words": words, "opposite": opposite}

    tokens, count = vectors.features.shape
    return [[one(t, m) for m in range(count)] for t in range(tokens)]


def caption(data: Data) -> str:
    """What it shows."""
    tops = [token[0]["norm"] for token in data["columns"]]
    token = int(np.argmax(tops))
    column = data["columns"][token][0]
    readers = [row[0]["norm"] for row in data["rows"]]
    reader = int(np.argmax(readers))
    row = data["rows"][reader][0]
    return (
        f"The largest column of the map, of norm {column['norm']:.3g}, is feature {column['feature']} of the token "
        f"{data['tokens'][token]!r} and promotes {column['words'][0]!r} most; the largest row, of norm "
        f"{row['norm']:.3g}, is how output feature {row['feature']} reads the token {data['tokens'][reader]!r} and "
        f"lies nearest to the embedding of {row['words'][0]!r}."
    )


def draw(data: Data, figure: Any) -> None:
    """The curves above, the words below."""
    panels, below, shown = over_words(figure, len(data["tokens"]), 2)
    for axes, name in zip(panels, ("column", "row"), strict=True):
        for colour, t in zip(COLOURS, shown, strict=False):
            norms = np.sort(data[f"{name}_norms"][t])[::-1]
            axes.plot(np.arange(1, len(norms) + 1), norms, color=colour, label=f"{t} {label(data['tokens'][t])}")
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set_ylim(0)
        axes.set_xlabel(f"{name}, the largest first")
        axes.set_ylabel(f"norm of the {name}")
    token_legend(panels[1])
    rows = [
        [
            label(data["tokens"][t]),
            *(
                cell
                for name, width in (("columns", 40), ("rows", 44))
                for cell in (
                    f"{data[name][t][0]['norm']:.3g}",
                    labels(data[name][t][0]["words"], width),
                )
            ),
        ]
        for t in shown
    ]
    heads = ("input token", "norm", "the largest column promotes", "norm", "the largest row reads")
    text_table(below, heads, rows, (0.0, 0.14, 0.21, 0.6, 0.67))


PART = Part("figure_2a", "The largest columns and rows of each token's map", compute, caption, draw)
