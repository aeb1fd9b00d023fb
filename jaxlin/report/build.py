"""`explain`: what the local linear map of one prompt says, as numbers and words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlin.attribution.layer_streams import streams
from jaxlin.attribution.logit import attribute
from jaxlin.common.devices import host_memory
from jaxlin.common.errors import JaxlinError, one_of
from jaxlin.common.printable import quoted
from jaxlin.linearize.linalg.triplets import SVD, check_dtype, effective_rank, stable_rank, svd
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.targets import Target, ids_of_words
from jaxlin.nn.arguments import check_model, check_tokenizer
from jaxlin.nn.decoder import Decoder, PromptError
from jaxlin.nn.sites import is_integer
from jaxlin.report.details import detail
from jaxlin.report.explanation import SPECTRA, Explanation, Spectrum, SpectrumRanks, Triplet
from jaxlin.spectrum.words import nearest_embeddings, promoted
from jaxlin.tokenizer import Tokenizer, required

COPIES = 10
"""Of how many times J's size there must be memory for LAPACK to find its singular vectors, J included."""


def explain(
    model: Decoder,
    tokenizer: Tokenizer | None,
    text: str | Sequence[int],
    *,
    position: int = -1,
    target: str | int | None = None,
    over: str | int | None = None,
    top: int = 5,
    spectrum: Spectrum | str = "dense",
    prepend_bos: bool | None = None,
    with_detail: bool = False,
) -> Explanation:
    """Explain the prediction of `model` after `text` by its local linear map.

    Args:
        model: any decoder.
        tokenizer: its tokenizer.
        text: the prompt, or its token ids.
        position: the token after which the prediction is read; negative counts from the last.
        target: the word whose logit is attributed; the likeliest next token unless given. It must be one token, as
            written or with a space before it; of the two the likelier is taken. Or its id.
        over: another word: the difference of the two logits is attributed.
        top: how many next tokens, singular triplets and words of each to give.
        spectrum: ``"dense"`` takes all rows of J, for its ranks and a residual over every row. For a large model or a
            long prompt ``"krylov"`` takes some dozens of products, and ``"none"`` leaves the spectrum out.
        prepend_bos: whether a text begins with BOS; what the tokenizer does by itself unless given.
        with_detail: whether to give layers, heads, neurons and the whole spectrum too: what `jaxlin.report` shows.

    Raises:
        PromptError: an empty prompt, one longer than the model's context, or ids that the model does not have.
        SiteError: a position that the prompt does not have.
        TokenizerError: a target that is not one token; BOS is asked for and there is none.
        JaxlinError: `top` is not in 1..vocabulary; an id that is no token's; `over` is the target; no such way to find
            a spectrum, none of a map in 16 bits, or all rows do not fit in memory.
    """
    check_model(model)
    check_tokenizer(tokenizer)
    tokenizer, vocab = required(tokenizer, "An explanation"), model.config.vocab_size
    if not is_integer(top) or not 1 <= top <= vocab:
        raise JaxlinError(f"Top: expected a number of words in 1..{vocab}; found {quoted(top)}.")
    how: Spectrum = one_of("Spectrum", spectrum, SPECTRA)
    if len(text) == 0:
        raise PromptError("Prompt: expected a text of one token or more; found none.")
    ids = tokenizer.encode(text, prepend_bos) if isinstance(text, str) else list(text)
    x = model.embed(ids)
    lmap = local_map(model, x, position=position)
    logits = np.asarray(model.unembed(lmap.output), np.float64)
    likeliest = np.argsort(-logits)[:top]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    asked = int(likeliest[0]) if target is None else target
    read = ids_of_words(tokenizer, (asked,) if over is None else (asked, over), logits)
    if over is not None and read[0] == read[1]:
        raise JaxlinError(
            f"Over: expected another word than the target; found {quoted(tokenizer.token(read[0]))} for both."
        )
    chosen: Target = read[0] if over is None else (read[0], read[1])
    attribution = attribute(model, x, chosen, position=position, sources=with_detail)

    layers = streams(model, x, chosen, position=position) if with_detail else None
    found = _spectrum(lmap, how, top)
    tokens = tokenizer.to_str_tokens(ids)
    k = min(top, len(found.whole.s))
    leading = SVD(found.whole.u[:, :k], found.whole.s[:k], found.whole.v[:k]).signed(np.asarray(lmap.output))
    return Explanation(
        tokens=tokens,
        position=int(lmap.position),
        rule=lmap.rule if isinstance(lmap.rule, str) else repr(lmap.rule),
        dtype=str(lmap.output.dtype),
        next_tokens=[(tokenizer.token(int(i)), float(probabilities[i])) for i in likeliest],
        residual=found.residual,
        target=tokenizer.token(read[0]),
        over=None if over is None else tokenizer.token(read[1]),
        logit=attribution.value,
        contributions=attribution.tokens.tolist(),
        bias=attribution.bias,
        defect=attribution.defect,
        spectrum=how,
        triplets=[
            _triplet(model, tokenizer, tokens, leading.u[:, i], float(leading.s[i]), leading.v[i], top)
            for i in range(k)
        ],
        ranks=found.ranks,
        ranks_without_first=found.ranks_without_first,
        detail=None if layers is None else detail(model, tokenizer, attribution, layers, found.whole.s, leading, top),
    )


@dataclass(frozen=True)
class _Spectrum:
    """What a way to find a spectrum gives: the values and vectors that it finds, and the residual that it measures."""

    whole: SVD
    residual: float
    ranks: SpectrumRanks | None = None
    ranks_without_first: SpectrumRanks | None = None


def _spectrum(lmap: LocalMap, how: Spectrum, top: int) -> _Spectrum:
    d, _, e = lmap.shape
    # Tokens after the position cannot reach it: their columns are zero and left out of the spectrum.
    reached = int(lmap.position) + 1
    if how == "none":
        return _Spectrum(SVD(np.zeros((d, 0)), np.zeros(0), np.zeros((0, reached, e))), lmap.residual)
    check_dtype(lmap.output.dtype)
    if how == "krylov":
        return _Spectrum(lmap.svd(min(top, d, reached * e), method="krylov"), lmap.residual)
    size = COPIES * d * reached * e * lmap.output.dtype.itemsize
    if size > host_memory():
        raise JaxlinError(
            f"Spectrum: expected {size / 1e9:.1f} GB for all rows of J and their singular vectors; this machine has "
            f'{host_memory() / 1e9:.1f}. Take "krylov", which needs products alone, or "none".'
        )
    jacobian = np.asarray(lmap.jacobian())
    seen = jacobian[:, :reached]
    whole = svd(seen)
    without_first = _ranks(np.linalg.svd(seen[:, 1:].reshape(d, -1), compute_uv=False)) if reached > 1 else None
    return _Spectrum(whole, lmap.residual_of(jacobian), _ranks(whole.s), without_first)


def _ranks(s: np.ndarray) -> SpectrumRanks:
    return SpectrumRanks(stable_rank(s), effective_rank(s))


def _triplet(
    model: Decoder, tokenizer: Tokenizer, tokens: list[str], u: np.ndarray, value: float, v: np.ndarray, top: int
) -> Triplet:
    def words(ids: Any) -> list[str]:
        return [tokenizer.token(int(i)) for i in ids]

    left = jnp.asarray(u)
    share = np.sum(np.square(v), axis=-1)
    heaviest = np.argsort(-share)[:2]
    near = nearest_embeddings(model, jnp.asarray(v[heaviest]), top)
    return Triplet(
        value=value,
        promotes=words(promoted(model, left, top).ids),
        demotes=words(promoted(model, -left, top).ids),
        reads=[(tokens[t], float(share[t]), words(row)) for t, row in zip(heaviest, near.ids, strict=True)],
    )
