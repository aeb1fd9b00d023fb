"""What `jaxlin.report.build` finds, as plain values: what the terminal, the page and JSON show."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaxlin.report.details import Detail

Spectrum = Literal["dense", "krylov", "none"]
"""How the singular triplets are found: from all rows of J, by products with it, or not at all."""

SPECTRA: tuple[Spectrum, ...] = ("dense", "krylov", "none")


@dataclass(frozen=True)
class Triplet:
    """A singular triplet in words.

    Attributes:
        value: the singular value.
        promotes: the output tokens that the left vector promotes most; its sign is the output's.
        demotes: those of the other pole.
        reads: for the input tokens that hold most of the right vector: the token, its share of the squared norm, and
            the vocabulary's tokens nearest to the right vector there.
    """

    value: float
    promotes: list[str]
    demotes: list[str]
    reads: list[tuple[str, float, list[str]]]


@dataclass(frozen=True)
class SpectrumRanks:
    """How many directions the map is worth: see `jaxlin.linearize.linalg.triplets`."""

    stable: float
    effective: float


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `to_dict` is ready for JSON.

    Attributes:
        tokens: the prompt's tokens.
        position: the position explained.
        rule: the freeze rule of gated MLPs.
        dtype: what was computed in.
        next_tokens: the likeliest next tokens and their probabilities.
        residual: ``|Jx + b - f(x)| / |f(x)|``, over every row of J where `spectrum` is ``"dense"``, else as
            `LocalMap.residual` measures it.
        target: the token whose logit is attributed.
        over: the token whose logit is taken from it; None where the logit is attributed as it is.
        logit: its logit, or the difference of the two.
        contributions: what each token of the prompt contributes to the logit.
        bias: what the additive biases contribute.
        defect: how far contributions and bias miss the logit, relative to the largest of them.
        spectrum: how the triplets were found.
        triplets: the largest singular triplets.
        ranks: of the whole map; None where not all of its singular values are known.
        ranks_without_first: of the map without the first token, whose embedding dominates many spectra; None where it
            is the only one too.
        detail: what the page shows beyond the terminal; None unless asked for.
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
    detail: Detail | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON; `detail` only where it was asked for."""
        found = asdict(self)
        return found if self.detail else {name: value for name, value in found.items() if name != "detail"}

    def _repr_html_(self) -> str:
        """The page, in a notebook."""
        from jaxlin.report import frame

        return frame(self)
