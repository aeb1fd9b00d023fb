"""`explain`: what the local linear map of one prompt says, as numbers and words."""

from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlin.attribution import attribute
from jaxlin.decoder import Decoder, PromptError
from jaxlin.detail import Detail, detail
from jaxlin.errors import JaxlinError
from jaxlin.hold import Rule
from jaxlin.local_map import local_map
from jaxlin.spectrum import effective_rank, stable_rank, svd
from jaxlin.streams import streams
from jaxlin.targets import likelier_spelling
from jaxlin.tokenizer import Tokenizer
from jaxlin.words import nearest_embeddings, promoted


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
class Ranks:
    """How many directions the map is worth: see `jaxlin.spectrum`."""

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
        residual: ``|Jx + b - f(x)| / |f(x)|``, over every row of J.
        target: the token whose logit is attributed.
        logit: its logit.
        contributions: what each token of the prompt contributes to the logit.
        bias: what the additive biases contribute.
        defect: how far contributions and bias miss the logit, relative to the largest of them.
        triplets: the largest singular triplets.
        ranks: of the whole map.
        ranks_without_first: of the map without the first token, whose embedding dominates many spectra; None where it
            is the only one.
        detail: what the page shows beyond the terminal; None unless asked for.
    """

    tokens: list[str]
    position: int
    rule: Rule
    dtype: str
    next_tokens: list[tuple[str, float]]
    residual: float
    target: str
    logit: float
    contributions: list[float]
    bias: float
    defect: float
    triplets: list[Triplet]
    ranks: Ranks
    ranks_without_first: Ranks | None
    detail: Detail | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON; `detail` only where it was asked for."""
        found = asdict(self)
        return found if self.detail else {name: value for name, value in found.items() if name != "detail"}

    def _repr_html_(self) -> str:
        """The page, in a notebook."""
        from jaxlin.report import frame

        return frame(self)


def explain(
    model: Decoder,
    tokenizer: Tokenizer,
    text: str,
    *,
    position: int = -1,
    target: str | None = None,
    top: int = 5,
    with_detail: bool = False,
) -> Explanation:
    """Explain the prediction of `model` after `text` by its local linear map.

    Args:
        model: any decoder.
        tokenizer: its tokenizer.
        text: the prompt.
        position: the token after which the prediction is read; negative counts from the last.
        target: the word whose logit is attributed; the likeliest next token unless given. It must be one token, as
            written or with a space before it; of the two the likelier is taken.
        top: how many next tokens, singular triplets and words of each to give.
        with_detail: whether to give layers, heads, neurons and the whole spectrum too: what `jaxlin.report` shows.

    Raises:
        PromptError: an empty prompt, or one longer than the model's context.
        SiteError: a position that the prompt does not have.
        TokenizerError: a target that is not one token.
        JaxlinError: `top` is not positive.
    """
    if top < 1:
        raise JaxlinError(f"Top: expected 1 or more; found {top}.")
    if not text:
        raise PromptError("Prompt: expected a text of one token or more; found none.")
    ids = tokenizer.encode(text)
    x = model.embed(ids)
    lmap = local_map(model, x, position=position)
    logits = np.asarray(model.unembed(lmap.output), np.float64)
    likeliest = np.argsort(-logits)[:top]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    chosen = int(likeliest[0]) if target is None else likelier_spelling(tokenizer, target, logits)
    attribution = attribute(model, x, chosen, position=position)

    layers = streams(model, x, chosen, position=position) if with_detail else None

    # Tokens after the position cannot reach it: their columns are zero and left out of the spectrum.
    jacobian = np.asarray(lmap.jacobian())
    seen = jacobian[:, : int(lmap.position) + 1]
    tokens = tokenizer.to_str_tokens(ids)
    whole = svd(seen)
    k = min(top, len(whole.s))
    return Explanation(
        tokens=tokens,
        position=int(lmap.position),
        rule=lmap.rule,
        dtype=str(lmap.output.dtype),
        next_tokens=[(tokenizer.token(int(i)), float(probabilities[i])) for i in likeliest],
        residual=lmap.residual_of(jacobian),
        target=tokenizer.token(chosen),
        logit=attribution.value,
        contributions=attribution.tokens.tolist(),
        bias=attribution.bias,
        defect=attribution.defect,
        triplets=[
            _triplet(
                model, tokenizer, tokens, whole.u[:, i], float(whole.s[i]), whole.v[i], np.asarray(lmap.output), top
            )
            for i in range(k)
        ],
        ranks=Ranks(stable_rank(whole.s), effective_rank(whole.s)),
        ranks_without_first=_ranks(seen[:, 1:]) if seen.shape[1] > 1 else None,
        detail=None if layers is None else detail(model, tokenizer, attribution, layers, whole, lmap.output, k),
    )


def _ranks(jacobian: np.ndarray) -> Ranks:
    s = np.linalg.svd(jacobian.reshape(jacobian.shape[0], -1), compute_uv=False)
    return Ranks(stable_rank(s), effective_rank(s))


def _triplet(
    model: Decoder,
    tokenizer: Tokenizer,
    tokens: list[str],
    u: np.ndarray,
    value: float,
    v: np.ndarray,
    output: np.ndarray,
    top: int,
) -> Triplet:
    sign = 1.0 if u @ output >= 0 else -1.0
    left, right = jnp.asarray(sign * u), sign * v

    def words(ids: Any) -> list[str]:
        return [tokenizer.token(int(i)) for i in ids]

    share = np.sum(np.square(right), axis=-1)
    heaviest = np.argsort(-share)[:2]
    near = nearest_embeddings(model, jnp.asarray(right[heaviest]), top)
    return Triplet(
        value=value,
        promotes=words(promoted(model, left, top).ids),
        demotes=words(promoted(model, -left, top).ids),
        reads=[(tokens[t], float(share[t]), words(row)) for t, row in zip(heaviest, near.ids, strict=True)],
    )
