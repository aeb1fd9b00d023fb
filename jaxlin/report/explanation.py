"""An explanation as plain values, which the terminal, the page and JSON show."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxlin import plots
from jaxlin.common.token_names import split_text, token_names
from jaxlin.linearize.residuals import ResidualEstimate
from jaxlin.report.details import Detail
from jaxlin.report.experts import RoutedLayer
from jaxlin.results import Result

Spectrum = Literal["dense", "krylov", "none"]
"""How singular triplets are computed: from all rows of J, from products with it, or not at all."""

SPECTRA: tuple[Spectrum, ...] = ("dense", "krylov", "none")


@dataclass(frozen=True, eq=False)
class Triplet(Result):
    """A singular triplet in words.

    Attributes:
        value: the singular value σ of a term σ u vᵀ of the map.
        promotes: the tokens whose logits the left vector u raises most; its sign is such that it points along the
            model's output.
        demotes: the tokens whose logits u lowers most.
        reads: the tokens of the prompt where the right vector v is largest: of each, its name (see
            `jaxlin.common.token_names`), its share of |v|², and the tokens of the vocabulary whose embeddings are
            nearest to v there.
    """

    value: float
    promotes: list[str]
    demotes: list[str]
    reads: list[tuple[str, float, list[str]]]


@dataclass(frozen=True, eq=False)
class SpectrumRanks(Result):
    """The stable and effective rank of a map: how many directions it uses; see `jaxlin.linearize.linalg.triplets`."""

    stable: float
    effective: float


@dataclass(frozen=True, eq=False)
class Explanation(Result):
    """The result of `explain`.

    Attributes:
        tokens: the prompt's tokens.
        position: the position explained.
        rule: the freeze rule of gated MLPs.
        dtype: the precision of the computation.
        next_tokens: the likeliest next tokens and their probabilities.
        residual: ``|Jx + b - f(x)| / |f(x)|``, on every row of J if `spectrum` is ``"dense"``, else in random
            directions, as `LocalMap.residual` measures it.
        residual_estimate: in how many directions, and the interval that holds the residual with a confidence of 95 %;
            None if it was measured on every row of J.
        target: the token whose logit is explained.
        over: the token whose logit is subtracted from it; None if none is.
        probability: of the target as the next token.
        probability_of_over: of `over`; None if there is none.
        logit: the logit of the target, or the difference of the two logits.
        contributions: of each token of the prompt, to the logit.
        bias: the contribution of all additive biases.
        defect: the difference between the logit and the sum of contributions and bias, relative to the largest of
            them.
        spectrum: how the triplets were computed.
        triplets: the singular triplets with the largest values.
        ranks: of the map; None unless all of its singular values are known.
        ranks_without_first: of the map without the first token, whose embedding dominates many spectra; None also if
            that is the only token.
        experts: the layers with a router, and the experts that it chose at the position; none in a model without
            experts.
        detail: layers, heads, neurons, lenses, other rules and all singular values, for the page; None unless
            requested.
    """

    tokens: list[str]
    position: int
    rule: str
    dtype: str
    next_tokens: list[tuple[str, float]]
    residual: float
    target: str
    over: str | None
    probability: float
    probability_of_over: float | None
    logit: float
    contributions: list[float]
    bias: float
    defect: float
    spectrum: Spectrum
    triplets: list[Triplet]
    ranks: SpectrumRanks | None
    ranks_without_first: SpectrumRanks | None
    experts: list[RoutedLayer] = field(default_factory=list)
    detail: Detail | None = None
    residual_estimate: ResidualEstimate | None = None

    @property
    def names(self) -> list[str]:
        """The names of the prompt's tokens, see `jaxlin.common.token_names`."""
        return token_names(self.tokens)

    @property
    def prompt(self) -> str:
        """The text up to the position explained, as it was written."""
        return split_text(self.tokens, self.position)[0]

    @property
    def rest(self) -> str:
        """The text after the position explained."""
        return split_text(self.tokens, self.position)[1]

    @property
    def subject(self) -> str:
        """The number that is attributed to tokens: a logit, or the difference of two."""
        target, *over = (token_names([token])[0] for token in (self.target, self.over) if token is not None)
        return f"the logit of {target}" + "".join(f" minus that of {each}" for each in over)

    def values(self) -> dict[str, Any]:
        """Plain Python values; `detail` is left out if it is None."""
        values = super().values()
        return values if self.detail else {name: value for name, value in values.items() if name != "detail"}

    def tables(self) -> list[dict[str, Any]]:
        """A row for each token, with its contribution."""
        positions = list(range(len(self.tokens)))
        return [{"position": positions, "token": self.tokens, "contribution": self.contributions}]

    def _draw(self, ax: Any) -> None:
        """Bars of the contributions of the tokens, over the text."""
        end = self.position + 1
        biases = [self.bias] if self.bias else []
        values = np.array([*self.contributions[:end], *biases])
        plots.token_bars(ax, {"contribution": values}, [*self.names[:end], *["b"] * len(biases)])
        plots.write(ax, title=f"Contributions to {self.subject} ({self.logit:.3f})", ylabel="contribution")

    def _repr_html_(self) -> str:
        """The whole page, for a notebook; what `detail` has is computed for it where it is missing."""
        from jaxlin.report import frame

        complete = self.__dict__.get("_complete")
        return frame(self if self.detail or complete is None else complete())
