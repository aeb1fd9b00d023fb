"""`AttentionScores`: why a head looked where it did, as a result."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from jaxlin import plots
from jaxlin.common.annotations import is_integer
from jaxlin.common.errors import JaxlinError, one_of
from jaxlin.common.printable import kind_of, quoted
from jaxlin.results import Result

BIASES = "bias"
"""The name of the last row and column of a table: what biases contribute."""

By = Literal["component", "token"]
"""What a table is by."""

TABLES: tuple[By, ...] = ("component", "token")


@dataclass(frozen=True)
class ScorePair:
    """A pair of a part of the query and a part of the key.

    Attributes:
        query: the component or token that the query has this part from.
        key: that of the key.
        effect: the contribution of the pair to the score.
    """

    query: str
    key: str
    effect: float


@dataclass(frozen=True, eq=False, repr=False)
class AttentionScores(Result):
    r"""The score of a head at a query and a key, as exact sums over pairs of components and of tokens.

    The frozen query is a sum $\sum_i q_i$ over what components have written at its token, the frozen key a sum
    $\sum_j k_j$, and the score the sum of all products $q_i \cdot k_j$:

    $$\texttt{by_component.sum()} = \texttt{by_token.sum()} = \texttt{score} - \texttt{baseline}.$$

    By token, $q_i$ is what reached the query from token $i$ through the frozen layers below, and $k_j$ what reached the
    key from token $j$. The last row and column of a table are those of biases: of this layer by component, of all
    layers up to it by token.

    Attributes:
        layer: the layer.
        head: the number of the head in it.
        query: the position that looks.
        key: the position that is looked at.
        score: the number that enters the softmax, after a softcap.
        baseline: the mean score of all keys that the query sees, where the tables are less that; otherwise 0.
        probability: the attention that the key gets.
        components: the names of the components, as in `Circuit`, and ``"bias"``.
        by_component: the contribution of each pair of components, that of the query first, ``[c, c]``.
        by_token: that of each pair of tokens, ``[t + 1, t + 1]``; None if it was not asked for.
        against: of a difference, the head, query and key that were subtracted; otherwise None.
    """

    AXES: ClassVar = {
        "by_component": ("query_component", "key_component"),
        "by_token": ("query_token", "key_token"),
    }
    LABELS: ClassVar = {
        **{axis: (axis, "components") for axis in ("query_component", "key_component")},
        **{axis: (axis, "sources") for axis in ("query_token", "key_token")},
    }
    PROPERTIES: ClassVar = ("defect",)

    layer: int
    head: int
    query: int
    key: int
    score: float
    baseline: float
    probability: float
    components: tuple[str, ...]
    by_component: Float[np.ndarray, "c c"]
    by_token: Float[np.ndarray, "n n"] | None = None
    against: tuple[int, int, int] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the rows and columns of `by_token`."""
        count = 0 if self.by_token is None else len(self.by_token) - 1
        return (*self._labels("position", count), BIASES)

    @property
    def defect(self) -> float:
        """How far the sum of a table is from the score less the baseline, relative to the largest of its entries."""
        tables = [table for table in (self.by_component, self.by_token) if table is not None]
        errors = [abs(table.sum() - (self.score - self.baseline)) for table in tables]
        scales = [max(np.abs(table).max(), abs(self.score - self.baseline)) for table in tables]
        return float(max(error / scale if scale else 0.0 for error, scale in zip(errors, scales, strict=True)))

    def minus(self, other: "AttentionScores") -> "AttentionScores":
        """What makes this score larger than another of the same layer: each number less that of `other`.

        With another key that is why the head looked here and not there; with another query, why it looked from here.

        Raises:
            JaxlinError: `other` is of another layer, prompt length or kind, or either is a difference.
        """
        if not isinstance(other, AttentionScores):
            raise JaxlinError(f"Difference: expected attention scores; found {kind_of(other)}.")
        if self.against is not None or other.against is not None:
            raise JaxlinError("Difference: expected scores of one query and key each; found a difference.")
        kinds = [(each.layer, each.components, None if (table := each.by_token) is None else len(table) - 1)
                 for each in (self, other)]  # fmt: skip
        if kinds[0] != kinds[1]:
            (layer, names, tokens), (other_layer, other_names, other_tokens) = kinds
            raise JaxlinError(
                "Difference: expected scores of one layer, with the same components and tokens; found layers "
                f"{layer} and {other_layer}, {len(names)} and {len(other_names)} components, and {tokens} and "
                f"{other_tokens} tokens."
            )
        numbers = ("score", "baseline", "probability", "by_component", "by_token")
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in numbers}
        changes: dict[str, Any] = {name: None if a is None else a - b for name, (a, b) in pairs.items()}
        return self.replaced(**changes, against=(other.head, other.query, other.key))

    def top(self, k: int = 20, *, by: By = "component") -> list[ScorePair]:
        """The `k` pairs with the largest absolute contributions, of components or of tokens.

        Raises:
            JaxlinError: `k` is not a positive integer, or there is no such table.
        """
        if not is_integer(k) or k < 1:
            raise JaxlinError(f"Pairs: expected a positive number of them; found {quoted(k)}.")
        table, names = self._table(by)
        order = np.argsort(-np.abs(table), axis=None, kind="stable")[: int(k)]
        places = zip(*np.unravel_index(order, table.shape), strict=True)
        return [ScorePair(names[i], names[j], float(table[i, j])) for i, j in places if table[i, j]]

    def plot(self, ax: Any = None, *, by: By = "component", k: int = 16) -> Any:
        """A heat map of the `k` parts of the query and of the key that have the largest contributions, and the axes.

        Args:
            ax: axes of matplotlib; by default those of a new figure.
            by: whether parts are components or tokens.
            k: how many parts of each to draw.

        Raises:
            JaxlinError: matplotlib is not installed, `ax` is not axes, `k` is not a positive integer, or there is no
                such table.
        """
        if not is_integer(k) or k < 1:
            raise JaxlinError(f"Plot: expected a positive number of parts; found {quoted(k)}.")
        table, names = self._table(by)
        rows, columns = (np.sort(np.argsort(-np.abs(table).max(axis=axis), kind="stable")[: int(k)]) for axis in (1, 0))
        ax = plots.axes_or_new(ax)
        plots.heat_map(ax, table[np.ix_(rows, columns)], [names[i] for i in rows], [names[j] for j in columns])
        plots.write(ax, title=self._title(), ylabel=f"query, by {by}", xlabel=f"key, by {by}")
        return ax

    def _table(self, by: By) -> tuple[Float[np.ndarray, "n n"], tuple[str, ...]]:
        by = one_of("Table", by, TABLES)
        if by == "component":
            return self.by_component, self.components
        if self.by_token is None:
            raise JaxlinError("Table: expected one by token; found none, because of tokens=False.")
        return self.by_token, self.sources

    def _title(self) -> str:
        """Which score it is, with the names of the tokens where they are known."""

        def place(query: int, key: int) -> str:
            names = self._labels("position", max(query, key) + 1)
            return f"{names[query]} → {names[key]}"

        title = f"{self.layer}.{self.head}, {place(self.query, self.key)}"
        if self.against is not None:
            head, query, key = self.against
            title += f", less {self.layer}.{head}, {place(query, key)}"
        elif self.baseline:
            title += ", less the mean of all keys"
        return f"{title}: {self.score - self.baseline:+.3f}"

    def __repr__(self) -> str:
        place = f"layer={self.layer}, head={self.head}, query={self.query}, key={self.key}"
        numbers = f"score={self.score:.4f}, baseline={self.baseline:.4f}, probability={self.probability:.4f}"
        return f"AttentionScores({place}, {numbers}, components={len(self.components)}, defect={self.defect:.0e})"
