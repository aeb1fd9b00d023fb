"""An explanation as plain values, which the terminal, the page and JSON show."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jaxlin.report.details import Detail
from jaxlin.report.experts import RoutedLayer

Spectrum = Literal["dense", "krylov", "none"]
"""How singular triplets are computed: from all rows of J, from products with it, or not at all."""

SPECTRA: tuple[Spectrum, ...] = ("dense", "krylov", "none")


@dataclass(frozen=True)
class Triplet:
    """A singular triplet in words.

    Attributes:
        value: the singular value σ of a term σ u vᵀ of the map.
        promotes: the tokens whose logits the left vector u raises most; its sign is such that it points along the
            model's output.
        demotes: the tokens whose logits u lowers most.
        reads: the tokens of the prompt where the right vector v is largest: of each, the token, its share of |v|², and
            the tokens of the vocabulary whose embeddings are nearest to v there.
    """

    value: float
    promotes: list[str]
    demotes: list[str]
    reads: list[tuple[str, float, list[str]]]


@dataclass(frozen=True)
class SpectrumRanks:
    """The stable and effective rank of a map: how many directions it uses; see `jaxlin.linearize.linalg.triplets`."""

    stable: float
    effective: float


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`.

    Attributes:
        tokens: the prompt's tokens.
        position: the position explained.
        rule: the freeze rule of gated MLPs.
        dtype: the precision of the computation.
        next_tokens: the likeliest next tokens and their probabilities.
        residual: ``|Jx + b - f(x)| / |f(x)|``, on every row of J if `spectrum` is ``"dense"``, else in random
            directions, as `LocalMap.residual` measures it.
        target: the token whose logit is explained.
        over: the token whose logit is subtracted from it; None if none is.
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
        detail: layers, heads, neurons and all singular values, for the page; None unless requested.
    """

    tokens: list[str]
    position: int
    rule: str
    dtype: str
    next_tokens: list[tuple[str, float]]
    residual: float
    target: str
    over: str | None
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

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON; `detail` is left out if it is None."""
        values = asdict(self)
        return values if self.detail else {name: value for name, value in values.items() if name != "detail"}

    def _repr_html_(self) -> str:
        """The page, for a notebook."""
        from jaxlin.report import frame

        return frame(self)
