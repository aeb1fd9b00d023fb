r"""Spectra of every layer: of the maps from the embeddings to it, through it, and from it to the output.

Attention and MLP outputs are taken where they are added to the residual stream, after any post-norm, so that the
stream is their sum.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin import plots
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.linearize.backward import transpose
from jaxlin.linearize.every_layer import layer_maps
from jaxlin.linearize.frozen import FrozenFactors, record, rule_of
from jaxlin.linearize.linalg.gram_matrix import (
    MAX_BAND_BYTES,
    Gram,
    gram_from_dense,
    gram_from_rows,
    left_vectors,
    singular_values,
)
from jaxlin.linearize.linalg.triplets import stable_rank
from jaxlin.linearize.rows import default_block
from jaxlin.nn.biases import without_biases
from jaxlin.nn.context import Context, Evaluation
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.folding import folding_pays
from jaxlin.nn.freeze_modes import Record, Replay
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import SiteError, checked_kinds, position_in
from jaxlin.nn.stack import LayerIndex, layer_of
from jaxlin.results import Result, html, traced_to

CONTRIBUTIONS = ("resid_post", "attn_out", "mlp_out")
"""The kinds of sites for the residual stream after a block, and for what its attention and its MLP add to it."""


@dataclass(frozen=True, repr=False, eq=False)
class LayerSpectra(Result):
    r"""The spectra of one map for each layer.

    Attributes:
        s: the singular values of the joint map of each layer, the largest first, ``[l, d]``.
        without_first: the singular values of the maps without the first token; None where there is no other token.
        u: the leading left vectors of each layer, ``[l, k, d]``, signed so that $u \cdot f \ge 0$ with the model's
            output $f$.
        single_token_u: the leading left vectors of the maps of single tokens, ``[n, l, k, d]``; None unless tokens were
            named.
    """

    AXES: ClassVar = {
        **dict.fromkeys(("s", "without_first"), ("layer", "triplet")),
        "u": ("layer", "triplet", "feature"),
        "single_token_u": ("prompt token", "layer", "triplet", "feature"),
    }

    s: Float[np.ndarray, "l d"]
    without_first: Float[np.ndarray, "l d"] | None
    u: Float[np.ndarray, "l k d"]
    single_token_u: Float[np.ndarray, "n l k d"] | None = None

    @property
    def stable_rank(self) -> Float[np.ndarray, " l"]:
        """The stable rank of each layer's map."""
        return np.array([stable_rank(s) for s in self.s])

    @property
    def stable_rank_without_first(self) -> Float[np.ndarray, " l"] | None:
        """The stable rank of each layer's map without the first token; None where there is no other token."""
        return None if self.without_first is None else np.array([stable_rank(s) for s in self.without_first])

    def _draw(self, ax: Any) -> None:
        """The stable rank of each layer's map, with the first token and without it."""
        ranks = {"all tokens": self.stable_rank}
        if (without_first := self.stable_rank_without_first) is not None:
            ranks["without the first token"] = without_first
        plots.curves(ax, np.arange(len(self.s)), ranks)
        plots.write(ax, title="Stable rank of the maps", xlabel="layer", ylabel="Σσ² / σ₁²")

    def _repr_html_(self) -> str:
        """The largest singular values of each layer."""
        return html.heading(self) + html.heat(self, ("layer", "triplet"), "s", self.s[:, :8])

    def path(self, n_directions: int = 2) -> Float[np.ndarray, "l n"]:
        r"""The cosines $u_i^{(l)} \cdot u_i^{(L)}$ of the leading left vectors with those of the last layer.

        Source: arXiv 2505.24293, figure 4B, for the maps of `cumulative_spectra`.
        """
        return np.einsum("lnd,nd->ln", self.u[:, :n_directions], self.u[-1, :n_directions])


@checked
def cumulative_spectra(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    *,
    kinds: tuple[str, ...] = CONTRIBUTIONS,
    position: int = -1,
    rule: Rule | None = None,
    k: int = 8,
    single_tokens: tuple[int, ...] = (),
) -> dict[str, LayerSpectra]:
    """The spectra of the maps from the embeddings to each layer's site at `position`, through the final norm.

    The final norm is frozen at the value of each site, so that a map ends where the unembedding would read the site.
    One forward pass of unit vectors gives columns of the maps of all layers, and only Gram matrices are stored. This
    takes as many passes as the dense maps of all tokens.

    Args:
        model: any decoder.
        x: the input embeddings.
        kinds: the kinds of sites, each with a result of its own.
        position: the position of the sites; a negative one counts from the last token.
        rule: the freeze rule of gated MLPs, by default the model's own.
        k: the number of left vectors to return.
        single_tokens: the tokens, up to `position`, whose own maps' left vectors are returned as `single_token_u`.

    Raises:
        PromptError: `x` does not have the shape ``[t, d]``.
        SiteError: there is no such position, or the model has no sites of a kind.
    """
    x, kinds, position = _checked_input(model, x, kinds, position)
    if unreachable := [token for token in single_tokens if not 0 <= token <= position]:
        raise SiteError(
            f"Single tokens: expected positions in 0..{position}, as only these reach the site; found {unreachable[0]}."
        )
    frozen, norms, output = _record_sites(model, x, position, kinds, rule_of(model, rule))
    n_layers, (tokens, d) = model.config.num_hidden_layers, x.shape
    block = _columns_per_pass(model, tokens)
    grams = {kind: np.zeros((2, n_layers, d, d)) for kind in kinds}  # of the first token, and of all others
    token_vectors: dict[str, dict[int, np.ndarray]] = {kind: {} for kind in kinds}
    for token in range(position + 1):
        token_grams = {kind: np.zeros((n_layers, d, d)) for kind in kinds}
        for start in range(0, d, block):
            v = jnp.zeros((block, tokens, d), x.dtype)
            v = v.at[:, token].set(jax.nn.one_hot(jnp.arange(start, start + block), d, dtype=x.dtype))
            for kind, columns in _push_to_sites(model, frozen, norms, v, position, kinds).items():
                columns64 = np.moveaxis(np.asarray(columns, np.float64), 0, -1)
                token_grams[kind] += columns64 @ np.swapaxes(columns64, -1, -2)
        for kind in kinds:
            grams[kind][min(token, 1)] += token_grams[kind]
            if token in single_tokens:
                leading = [_signed_left_vectors(gram, output, k)[0] for gram in token_grams[kind]]
                token_vectors[kind][token] = np.stack(leading)
    results = {}
    for kind in kinds:
        spectra = _spectra_of_grams([Gram(*parts) for parts in zip(*grams[kind], strict=True)], output, k)
        vectors = np.stack([token_vectors[kind][token] for token in single_tokens]) if single_tokens else None
        result = spectra.replaced(single_token_u=vectors)
        results[kind] = traced_to(result, model, x, rule=rule, kind=kind, position=position)
    return results


@checked
def single_layer_spectra(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    *,
    kinds: tuple[str, ...] = CONTRIBUTIONS,
    position: int = -1,
    rule: Rule | None = None,
    k: int = 8,
) -> dict[str, LayerSpectra]:
    """The spectra of the maps through one layer: from the stream that enters it, at all positions, to its site.

    The final norm has no part in these maps. The arguments and errors are those of `cumulative_spectra`.
    """
    x, kinds, position = _checked_input(model, x, kinds, position)
    frozen, _, output = _record_sites(model, x, position, kinds, rule_of(model, rule))
    n_layers, (tokens, d) = model.config.num_hidden_layers, x.shape
    block = _columns_per_pass(model, tokens)
    spectra = {}
    for kind in kinds:
        pulls = [
            functools.partial(_pull_layer, model, frozen, model.layout.locate(layer), position, kind)
            for layer in range(n_layers)
        ]
        grams = [gram_from_rows(pull, (d, tokens, d), x.dtype, block=block) for pull in pulls]
        result = _spectra_of_grams(grams, output, k)
        spectra[kind] = traced_to(result, model, x, rule=rule, kind=kind, position=position)
    return spectra


@checked
def spectra_to_output(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    *,
    kinds: tuple[str, ...] = ("resid_pre",),
    position: int = -1,
    rule: Rule | None = None,
    k: int = 8,
    memory: int = MAX_BAND_BYTES,
) -> dict[str, LayerSpectra]:
    """The spectra of the maps from each layer's site, at all positions, to the output at `position`.

    The maps come from one backward pass, which is repeated for a part of the kinds at a time where the maps of all
    kinds together would take more than `memory` bytes. The other arguments and the errors are those of
    `cumulative_spectra`.
    """
    x, kinds, position = _checked_input(model, x, kinds, position)
    frozen, _, output = _record_sites(model, x, position, (), rule_of(model, rule))
    bytes_per_kind = model.config.num_hidden_layers * model.config.hidden_size * x.size * x.dtype.itemsize
    kinds_per_pass = max(1, memory // bytes_per_kind)
    spectra = {}
    for start in range(0, len(kinds), kinds_per_pass):
        part = kinds[start : start + kinds_per_pass]
        for kind, maps in layer_maps(model, frozen, kinds=part, position=position).items():
            grams = [gram_from_dense(np.asarray(jacobian)) for jacobian in maps]
            result = _spectra_of_grams(grams, output, k)
            spectra[kind] = traced_to(result, model, x, rule=rule, kind=kind, position=position)
    return spectra


def _checked_input(
    model: Decoder, x: Float[Embeddings, "t d"], kinds: tuple[str, ...], position: int
) -> tuple[Any, tuple[str, ...], int]:
    check_not_traced("Spectra", model, x)
    x = model.check_embeddings(x)
    return x, checked_kinds(kinds, model.sites), position_in(x.shape[0], position)


def _columns_per_pass(model: Decoder, tokens: int) -> int:
    """The number of vectors in one pass: all `d` where they take at most 64 MiB, as fewer passes are faster."""
    d, f = model.config.hidden_size, model.config.neurons
    itemsize = jnp.dtype(model.dtype).itemsize
    return d if d * tokens * d * itemsize <= 2**26 else default_block(d, tokens, max(d, f) * itemsize)


def _spectra_of_grams(grams: list[Gram], output: Float[Array, " d"], k: int) -> LayerSpectra:
    u, s = zip(*(_signed_left_vectors(gram.joint, output, k) for gram in grams), strict=True)
    has_other_tokens = any(np.any(gram.rest) for gram in grams)
    without_first = np.stack([singular_values(gram.rest) for gram in grams]) if has_other_tokens else None
    return LayerSpectra(np.stack(s), without_first, np.stack(u))


def _signed_left_vectors(
    gram: Float[np.ndarray, "d d"], output: Float[Array, " d"], k: int
) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, " d"]]:
    """The `k` leading left vectors, signed by the output, and all singular values."""
    u, s = left_vectors(gram)
    leading = u[:, :k].T
    return np.where(leading @ np.asarray(output, np.float64) < 0, -1, 1)[:, None] * leading, s


@functools.partial(jax.jit, static_argnames=("kinds", "rule"))
def _record_sites(
    model: Decoder, x: Embeddings, position: Any, kinds: tuple[str, ...], rule: Rule
) -> tuple[FrozenFactors, dict[str, Any], Array]:
    """The frozen factors, those of the final norm at each layer's site, and the output."""
    recording = record(model, x, kinds, rule=rule)
    norms = {}
    for kind, values in recording.sites.items():
        norm_record = Record(rule)
        model.norm(values[:, position], Context(norm_record))
        norms[kind] = norm_record.factors
    return recording.frozen, norms, recording.output[position]


@functools.partial(jax.jit, static_argnames="kinds")
def _push_to_sites(
    model: Decoder, frozen: FrozenFactors, norms: dict[str, Any], v: Array, position: Any, kinds: tuple[str, ...]
) -> dict[str, Float[Array, "b l d"]]:
    """The maps of all layers times `v`, through the final norm with the factors `norms` of each site."""
    linear_model = without_biases(model)
    evaluation = Evaluation(fold=folding_pays(v.shape[0], v.shape[-1], model.config.neurons))

    _, sites = linear_model.scan(
        jnp.moveaxis(v, 1, 0),
        lambda factors: Context(Replay(factors), evaluation=evaluation),
        frozen.layers,
        collect=lambda ctx: {kind: ctx.hooks.values[kind][position] for kind in kinds},
    )
    normed = {kind: linear_model.norm(sites[kind], Context(Replay(norms[kind]))) for kind in kinds}
    return {kind: jnp.moveaxis(value, 1, 0) for kind, value in normed.items()}


@functools.partial(jax.jit, static_argnames="kind")
def _pull_layer(
    model: Decoder, frozen: FrozenFactors, layer: LayerIndex, position: Any, kind: str, u: Float[Array, "b d"]
) -> Float[Array, "b t d"]:
    """The transpose of the map through one layer, times `u`."""
    evaluation = Evaluation(fold=folding_pays(u.shape[0], u.shape[-1], model.config.neurons))
    factors = layer_of(frozen.layers, layer)

    def run_layer(linear_model: Decoder, v: Float[Array, "t b d"]) -> Float[Array, "b d"]:
        ctx = Context(Replay(factors), evaluation=evaluation)
        linear_model.block(layer, v, ctx)
        return ctx.hooks.values[kind][position]

    (rows,) = transpose(run_layer, model, jax.ShapeDtypeStruct((frozen.tokens, *u.shape), u.dtype))(u)
    return jnp.moveaxis(rows, 0, 1)
