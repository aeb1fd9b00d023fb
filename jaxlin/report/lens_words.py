"""What the lenses say of the streams of a prompt, in words, for the page."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlin import lens as lenses
from jaxlin import plots
from jaxlin.common.token_names import token_names
from jaxlin.lens import JacobianLens
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import Embeddings
from jaxlin.results import Result
from jaxlin.tokenizer import Tokenizer

LONG = 40
"""Prompts of more tokens are shown in less detail: their maps have colours without figures, and fewer words."""

WORDS_OF_LONG = 3
"""Words for each stream of a long prompt."""


@dataclass(frozen=True, eq=False)
class LensWords(Result):
    """The tokens that one lens reads from the stream of each token, at each of some layers.

    Attributes:
        lens: ``"logit lens"``, ``"Jacobian lens"`` or ``"exact lens"``.
        layers: the layers after whose block the stream is read; -1 for the embeddings.
        words: the tokens with the largest logits, the largest first, ``[layers][t][k]``. Of the exact lens, those whose
            logits the stream's part of the output raises most.
        probabilities: of the words, ``[layers][t][k]``; None for the exact lens, whose parts are no predictions.
        ranks: how many tokens have a larger logit than the target in the last token's stream, ``[layers]``; None
            likewise.
    """

    lens: str
    layers: list[int]
    words: list[list[list[str]]]
    probabilities: list[list[list[float]]] | None
    ranks: list[int] | None

    def _draw(self, ax: Any) -> None:
        """A grid of the first words, layer by token, on their probabilities; the last layer is on top."""
        words = [[token_names(cell[:1])[0] for cell in row] for row in self.words][::-1]
        values = np.zeros(np.shape(words)) if self.probabilities is None else np.array(self.probabilities)[::-1, :, 0]
        columns = self._labels("position", len(words[0]))
        plots.word_grid(ax, words, values, [str(layer) for layer in self.layers[::-1]], columns)
        plots.write(ax, title=f"The first word of the {self.lens}", ylabel="layer")


def read_lenses(
    model: Decoder,
    tokenizer: Tokenizer,
    x: Embeddings,
    *,
    target: int,
    position: int,
    top: int,
    jacobian_lens: JacobianLens | None,
    with_exact: bool,
) -> list[LensWords]:
    """The words of the logit lens, of a Jacobian lens if there is one, and of the exact lens if that is asked for.

    They are those of the tokens up to `position`. The exact lens takes as many operations as a dense map.
    """
    tokens = position + 1
    k = min(top, WORDS_OF_LONG) if tokens > LONG else top

    def words(ids: Any) -> list[list[list[str]]]:
        return [[[tokenizer.token(int(i)) for i in cell] for cell in row] for row in np.asarray(ids)[:, :tokens]]

    def reading(name: str, lens: JacobianLens | None) -> LensWords:
        read = lenses.read(model, x, lens, k=k, tokens=target, positions=range(tokens))
        ranks = read.ranks[:, -1, 0].tolist()
        return LensWords(name, list(read.layers), words(read.ids), read.probabilities.tolist(), ranks)

    readings = [reading("logit lens", None)]
    if jacobian_lens is not None:
        readings.append(reading("Jacobian lens", jacobian_lens))
    if with_exact:
        parts = lenses.exact(model, x, position=position).words(model, k).positive.ids
        readings.append(LensWords("exact lens", list(range(-1, len(parts) - 1)), words(parts), None, None))
    return readings
