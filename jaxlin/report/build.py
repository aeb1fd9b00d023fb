"""`explain`: one prediction, explained by its local linear map in numbers and words."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlin import lens as lenses
from jaxlin.attribution.layer_streams import stream_contributions
from jaxlin.attribution.logit import attribute
from jaxlin.common.annotations import is_integer
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.devices import host_memory
from jaxlin.common.errors import JaxlinError, one_of
from jaxlin.common.printable import quoted
from jaxlin.common.token_names import token_names
from jaxlin.lens import JacobianLens
from jaxlin.lens.jacobian_lens import check_lens
from jaxlin.linearize.linalg.triplets import SVD, check_dtype, effective_rank, stable_rank, svd
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.residuals import ResidualEstimate
from jaxlin.linearize.targets import Target, ids_of_words
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import PromptError
from jaxlin.report.circuit_graph import circuit_graph
from jaxlin.report.details import make_detail
from jaxlin.report.experts import routed_layers
from jaxlin.report.explanation import SPECTRA, Explanation, Spectrum, SpectrumRanks, Triplet
from jaxlin.report.lens_words import read_lenses
from jaxlin.report.rule_comparison import compare_rules
from jaxlin.results import traced_to
from jaxlin.spectrum.words import nearest_embeddings, promoted_tokens
from jaxlin.tokenizer import Tokenizer, require_tokenizer

COPIES = 10
"""Memory that LAPACK needs to compute the singular vectors of J, as a multiple of the size of J, J included."""


@checked
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
    lens: JacobianLens | str | PathLike[str] | None = None,
) -> Explanation:
    """Explain the prediction of `model` after `text` by its local linear map.

    Args:
        model: any decoder.
        tokenizer: its tokenizer.
        text: the prompt, or its token ids.
        position: the prediction after this token is explained; negative numbers count from the end.
        target: the word whose logit is explained, or its id; by default the likeliest next token. The word must be one
            token, as written or with a space before it; of the two the likelier is taken.
        over: another word, or its id: the difference of the two logits is explained.
        top: the number of next tokens, of singular triplets, and of words for each.
        spectrum: ``"dense"`` computes all rows of J, which gives its ranks and a residual on every row. For large
            models or long prompts, ``"krylov"`` takes some dozens of products with J; ``"none"`` computes no spectrum.
        prepend_bos: whether the prompt begins with BOS; by default as the tokenizer does.
        with_detail: whether to compute layers, heads, neurons, lenses, other freeze rules and all singular values too,
            which the page shows.
        lens: a Jacobian lens of the model, or the file of one, which the page shows beside the logit lens.

    Raises:
        PromptError: the prompt is empty, longer than the model's context, or has ids that the model does not have.
        SiteError: the prompt has no such position.
        TokenizerError: the target is not one token; or BOS is requested and there is none.
        JaxlinError: `top` is not in 1..vocabulary; an id is no token's; `over` is the target; `spectrum` is none of the
            three, or is requested of a map in 16 bits; all rows of J do not fit in memory; or `lens` is not a lens of
            this model.
        CheckpointError: there is no such file of a lens, or it has none.
    """
    check_not_traced("Explanation", model)
    tokenizer, vocab = require_tokenizer(tokenizer, "An explanation"), model.config.vocab_size
    if not is_integer(top) or not 1 <= top <= vocab:
        raise JaxlinError(f"Top: expected a number of words in 1..{vocab}; found {quoted(top)}.")
    method: Spectrum = one_of("Spectrum", spectrum, SPECTRA)
    jacobian_lens: Any = lenses.load(lens) if isinstance(lens, str | PathLike) else lens
    if lens is not None:
        check_lens(model, jacobian_lens)
    if len(text) == 0:
        raise PromptError("Prompt: expected a text of one token or more; found none.")
    ids = tokenizer.encode(text, prepend_bos) if isinstance(text, str) else list(text)
    x = model.embed(ids)
    lmap = local_map(model, x, position=position)
    logits = np.asarray(model.unembed(lmap.output), np.float64)
    likeliest = np.argsort(-logits)[:top]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    word = int(likeliest[0]) if target is None else target
    target_ids = ids_of_words(tokenizer, (word,) if over is None else (word, over), logits)
    if over is not None and target_ids[0] == target_ids[1]:
        raise JaxlinError(
            f"Over: expected another word than the target; found {quoted(tokenizer.token(target_ids[0]))} for both."
        )
    attributed: Target = target_ids[0] if over is None else (target_ids[0], target_ids[1])
    attribution = attribute(model, x, attributed, position=position, sources=with_detail)

    decomposition = _decompose(lmap, method, top)
    tokens = tokenizer.to_str_tokens(ids)
    triplets = decomposition.svd
    k = min(top, len(triplets.s))
    leading = SVD(triplets.u[:, :k], triplets.s[:k], triplets.v[:k]).signed(np.asarray(lmap.output))
    detail = None
    if with_detail:
        lens_words = read_lenses(
            model, tokenizer, x, target=target_ids[0], position=int(lmap.position), top=top,
            jacobian_lens=jacobian_lens, with_exact=method == "dense",
        )  # fmt: skip
        layers = stream_contributions(model, x, attributed, position=position)
        rules = compare_rules(model, x, attributed, position, attribution)
        graph = circuit_graph(model, tokenizer, x, attributed, int(lmap.position), top)
        detail = make_detail(model, tokenizer, attribution, layers, triplets.s, leading, top, rules, lens_words, graph)
    explanation = Explanation(
        tokens=tokens,
        position=int(lmap.position),
        rule=lmap.rule if isinstance(lmap.rule, str) else repr(lmap.rule),
        dtype=str(lmap.output.dtype),
        next_tokens=[(tokenizer.token(int(i)), float(probabilities[i])) for i in likeliest],
        residual=decomposition.residual,
        target=tokenizer.token(target_ids[0]),
        over=None if over is None else tokenizer.token(target_ids[1]),
        probability=float(probabilities[target_ids[0]]),
        probability_of_over=None if over is None else float(probabilities[target_ids[1]]),
        logit=attribution.value,
        contributions=attribution.tokens.tolist(),
        bias=attribution.bias,
        defect=attribution.defect,
        spectrum=method,
        triplets=[
            _triplet(model, tokenizer, token_names(tokens), leading.u[:, i], float(leading.s[i]), leading.v[i], top)
            for i in range(k)
        ],
        ranks=decomposition.ranks,
        ranks_without_first=decomposition.ranks_without_first,
        experts=routed_layers(attribution.experts),
        detail=detail,
        residual_estimate=decomposition.residual_estimate,
    )
    settings = {"target": target_ids, "position": int(lmap.position), "top": top, "spectrum": method}
    traced_to(explanation, model, ids=ids, tokenizer=tokenizer, rule=lmap.rule, **settings)
    if not with_detail:
        options = {"target": target_ids[0], "over": None if over is None else target_ids[1], "spectrum": method}
        options.update(position=int(lmap.position), top=top, lens=jacobian_lens, with_detail=True)
        # Not a field: an explanation that is saved, copied or compared is the numbers alone.
        explanation.__dict__["_complete"] = functools.cache(
            functools.partial(explain, model, tokenizer, tuple(ids), **options)
        )
    return explanation


@dataclass(frozen=True)
class _Decomposition:
    """Singular triplets of a map, its residual, and its ranks if all of its singular values are known."""

    svd: SVD
    residual: float
    ranks: SpectrumRanks | None = None
    ranks_without_first: SpectrumRanks | None = None
    residual_estimate: ResidualEstimate | None = None


def _decompose(lmap: LocalMap, method: Spectrum, top: int) -> _Decomposition:
    d, _, e = lmap.shape
    # Tokens after the position cannot influence it: their columns are zero, and are left out.
    n_tokens = int(lmap.position) + 1
    if method == "none":
        return _estimated(SVD(np.zeros((d, 0)), np.zeros(0), np.zeros((0, n_tokens, e))), lmap)
    check_dtype(lmap.output.dtype)
    if method == "krylov":
        return _estimated(lmap.svd(min(top, d, n_tokens * e), method="krylov"), lmap)
    size = COPIES * d * n_tokens * e * lmap.output.dtype.itemsize
    if size > host_memory():
        raise JaxlinError(
            f"Spectrum: expected {size / 1e9:.1f} GB for all rows of J and their singular vectors; this machine has "
            f'{host_memory() / 1e9:.1f}. Use "krylov", which needs only products with J, or "none".'
        )
    jacobian = np.asarray(lmap.jacobian())
    columns = jacobian[:, :n_tokens]
    triplets = svd(columns)
    without_first = _ranks(np.linalg.svd(columns[:, 1:].reshape(d, -1), compute_uv=False)) if n_tokens > 1 else None
    return _Decomposition(triplets, lmap.residual_of(jacobian), _ranks(triplets.s), without_first)


def _estimated(svd: SVD, lmap: LocalMap) -> _Decomposition:
    return _Decomposition(svd, lmap.residual, residual_estimate=lmap.estimate_residual())


def _ranks(s: np.ndarray) -> SpectrumRanks:
    return SpectrumRanks(stable_rank(s), effective_rank(s))


def _triplet(
    model: Decoder, tokenizer: Tokenizer, names: list[str], u: np.ndarray, value: float, v: np.ndarray, top: int
) -> Triplet:
    def words(ids: Any) -> list[str]:
        return [tokenizer.token(int(i)) for i in ids]

    left = jnp.asarray(u)
    share = np.sum(np.square(v), axis=-1)
    heaviest = np.argsort(-share)[:2]
    near = nearest_embeddings(model, jnp.asarray(v[heaviest]), top)
    return Triplet(
        value=value,
        promotes=words(promoted_tokens(model, left, top).ids),
        demotes=words(promoted_tokens(model, -left, top).ids),
        reads=[(names[t], float(share[t]), words(row)) for t, row in zip(heaviest, near.ids, strict=True)],
    )
