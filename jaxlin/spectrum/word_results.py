"""The results of `jaxlin.spectrum.words`: tokens of directions, and of singular triplets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlin import plots
from jaxlin.common.arrays import Leaf
from jaxlin.results import Result, html, note
from jaxlin.results.tables import columns, filled, stacked


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class TopTokens(Result):
    """The tokens with the highest scores for each direction.

    Attributes:
        ids: the token ids, the highest score first.
        scores: the logits of an output direction, or the cosines of an input direction.
    """

    COLUMNS: ClassVar = {"ids": "id", "scores": "score"}
    IDS: ClassVar = ("ids",)
    VALUE: ClassVar = "score"

    ids: Leaf
    scores: Leaf

    def __iter__(self) -> Iterator[Any]:
        yield from (self.ids, self.scores)

    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """The directions, the positions if there is an axis of them, and the places of the tokens."""
        names = ("direction", "position", "place")
        count = np.ndim(self.ids)
        axes = {1: names[2:], 2: (names[0], names[2]), 3: names}.get(count, tuple(f"axis {i}" for i in range(count)))
        return dict.fromkeys(("ids", "scores"), axes)

    @property
    def words(self) -> Any:
        """The tokens as people read them, in nested lists; their ids where the tokenizer is not known."""

        def read(ids: Any) -> Any:
            return [read(each) for each in ids] if isinstance(ids, list) else self._word(ids)

        return read(np.asarray(self.ids).tolist())

    def _draw(self, ax: Any) -> None:
        """Bars of the scores of one direction, or a grid of the tokens of several, one row a direction."""
        k = np.shape(self.ids)[-1]
        scores = np.asarray(self.scores).reshape(-1, k)
        words = TopTokens(np.asarray(self.ids).reshape(-1, k), scores)
        note(words, self.provenance)
        if len(scores) == 1:
            plots.bars(ax, scores[0], words.words[0])
            plots.write(ax, title="The tokens of a direction", xlabel="score")
        else:
            plots.word_grid(ax, words.words, scores, list(map(str, range(len(scores)))), list(map(str, range(k))))
            plots.write(ax, title="The tokens of each direction", ylabel="direction", xlabel="place")

    def _repr_html_(self) -> str:
        """The tokens of each direction."""
        return html.heading(self) + html.word_lists({"tokens": self.words})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Poles(Result):
    """The tokens at both poles of each direction, because the sign of a singular vector is arbitrary.

    Attributes:
        positive: the top tokens of the direction.
        negative: the top tokens of the opposite direction, with their scores there.
    """

    positive: TopTokens
    negative: TopTokens

    def __iter__(self) -> Iterator[Any]:
        yield from (self.positive, self.negative)

    def tables(self) -> list[dict[str, Any]]:
        """One table, with the pole as its first column."""
        poles = {"positive": self.positive, "negative": self.negative}
        return [stacked([filled({"pole": name}, pole.tables()[0]) for name, pole in poles.items()])]

    def _draw(self, ax: Any) -> None:
        """The tokens of the positive pole."""
        self.positive._draw(ax)

    def _repr_html_(self) -> str:
        """The tokens of each direction, at both poles."""
        poles = {"positive pole": self.positive.words, "negative pole": self.negative.words}
        return html.heading(self) + html.word_lists(poles)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class TripletWords(Result):
    r"""The tokens of singular triplets; $u \cdot f \ge 0$ fixes the sign of $u$, and of $v$ with it.

    Attributes:
        left: the output tokens of each left vector, scored by the logits of $u$, ``[k, n]``.
        right: the input tokens of each right vector at each position, scored by cosines, ``[k, t, n]``.
        share: the share of each position in the squared norm of each right vector, ``[k, t]``.
    """

    left: Poles
    right: Poles
    share: Leaf

    def __iter__(self) -> Iterator[Any]:
        yield from (self.left, self.right, self.share)

    def tables(self) -> list[dict[str, Any]]:
        """One table of the tokens of both vectors, with the share of each position in the right one."""
        right = self.right.tables()[0]
        k = np.shape(self.right.positive.ids)[-1]
        sides = {"left": self.left.tables()[0], "right": {**right, "share": np.tile(np.repeat(self.share, k), 2)}}
        table = stacked([filled({"vector": name}, side) for name, side in sides.items()])
        return [{"triplet" if name == "direction" else name: column for name, column in table.items()}]

    def _draw(self, ax: Any) -> None:
        """The shares of the positions in each right vector, beside the tokens that the left vector promotes."""
        rows = ["  ".join(words[:4]) for words in self.left.positive.words]
        share = np.asarray(self.share)
        plots.heat_map(ax, share, rows, self._labels("position", share.shape[1]), signed=False)
        plots.write(ax, title="Where each right vector reads", ylabel="left vector promotes")

    def _repr_html_(self) -> str:
        """One row a triplet: what the left vector promotes and demotes, and what the right one reads."""
        share = np.asarray(self.share)
        heaviest = np.argmax(share, axis=1)
        names = self._labels("position", share.shape[1])
        near, far = (pole.words for pole in (self.right.positive, self.right.negative))
        columns = {
            "left vector promotes": self.left.positive.words,
            "and demotes": self.left.negative.words,
            "right vector reads": [[names[t], f"({share[i, t]:.0%})"] for i, t in enumerate(heaviest)],
            "near": [near[i][t] for i, t in enumerate(heaviest)],
            "opposite": [far[i][t] for i, t in enumerate(heaviest)],
        }
        return html.heading(self) + html.word_lists(columns)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Features(Result):
    """The columns or rows with the largest norms in the map of each token.

    Attributes:
        features: the indices of the columns or rows, the largest norm first, ``[t, m]``.
        norms: the norms of these columns or rows.
        words: the tokens of these columns or rows, ``[t, m, n]``.
    """

    AXES: ClassVar = dict.fromkeys(("features", "norms"), ("position", "place"))
    COLUMNS: ClassVar = {"features": "index", "norms": "norm"}

    features: Leaf
    norms: Leaf
    words: Poles

    def __iter__(self) -> Iterator[Any]:
        yield from (self.features, self.norms, self.words)

    def tables(self) -> list[dict[str, Any]]:
        """One table, with the words of each column or row in one cell."""
        own = {"features": np.asarray(self.features), "norms": np.asarray(self.norms)}
        table = columns(self, ("position", "place"), own)
        for name, pole in (("positive", self.words.positive), ("negative", self.words.negative)):
            table[name] = [" ".join(words) for row in pole.words for words in row]
        return [table]

    def _draw(self, ax: Any) -> None:
        """A grid of the first word of each column or row, on its norm."""
        words = [[cell[0] for cell in row] for row in self.words.positive.words]
        positions, count = np.shape(self.norms)
        plots.word_grid(ax, words, self.norms, self._labels("position", positions), list(map(str, range(count))))
        plots.write(ax, title="The largest columns or rows of the map", xlabel="place")
