"""Table 1: words for the leading left vectors of the map from the embeddings to each layer, jointly and by token."""

import numpy as np

from jaxlin.report.paper.markdown import row, table
from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.subject import Subject
from jaxlin.spectrum.layer_spectra import cumulative_spectra
from jaxlin.spectrum.words import left_words

VECTORS, WORDS = 3, 4
"""The number of left vectors of each map, and of words for each pole."""


def compute(subject: Subject) -> Data:
    """Words for the joint map, and for the maps of the first three tokens and the last."""
    last = len(subject.ids) - 1
    shown = tuple(sorted({*range(min(3, last + 1)), last}))
    model, site = subject.model, "resid_post"
    spectra = cumulative_spectra(model, subject.x, kinds=(site,), k=VECTORS, single_tokens=shown)[site]
    assert spectra.single_token_u is not None
    vectors = np.concatenate([spectra.u[None], spectra.single_token_u])
    poles = left_words(model, vectors, min(WORDS, model.config.vocab_size))
    logits = np.asarray(model.unembed(subject.lmap.output))
    return {
        "tokens": subject.tokens,
        "predicted": subject.words(int(np.argmax(logits))),
        "maps": ["all tokens", *(f"token {t}" for t in shown)],
        "of": [None, *shown],
        "promotes": subject.words(poles.positive.ids.tolist()),
        "demotes": subject.words(poles.negative.ids.tolist()),
    }


def caption(data: Data) -> str:
    """What it shows."""
    named = [any(data["predicted"] in words for words in layer) for layer in data["promotes"][0]]
    depth = len(named)
    layers = [str(layer) for layer, there in enumerate(named, start=1) if there]
    if not layers:
        where = "at no layer"
    elif len(layers) == depth:
        where = "at every layer"
    else:
        where = f"at {len(layers)} of {depth} layers, first at layer {layers[0]}"
    return (
        f"The predicted token, {data['predicted']!r}, is among the {len(data['promotes'][0][0][0])} words that one of "
        f"the {len(data['promotes'][0][0])} leading left vectors of the joint map promotes most {where}."
    )


def markdown(data: Data) -> str:
    """A table for each map, with a row for each layer and a column for each vector."""
    parts = []
    for name, of, layers in zip(data["maps"], data["of"], data["promotes"], strict=True):
        title = name if of is None else f"{name}, {data['tokens'][of]!r}"
        heads = ["layer", *(f"left vector {i + 1} promotes" for i in range(len(layers[0])))]
        rows = [[str(i), *(row(words) for words in layer)] for i, layer in enumerate(layers, start=1)]
        parts.append(f"## {title}\n\n{table(heads, rows)}")
    return "\n".join(parts)


PART = Part("table_1", "Left vectors in words, layer by layer", compute, caption, markdown=markdown)
