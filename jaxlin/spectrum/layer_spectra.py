r"""The map layer by layer: from the embeddings to each layer, through each layer alone, from each layer to the output.

All contributions are taken as they enter the residual stream, after any post-norm, so that they add up to it.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.arrays import ShapesRepr
from jaxlin.linearize.backward import transpose
from jaxlin.linearize.every_layer import layer_maps
from jaxlin.linearize.frozen import FrozenFactors, record
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
from jaxlin.nn.sites import SiteError, checked_kinds, position_in

CONTRIBUTIONS = ("resid_post", "attn_out", "mlp_out")
"""The residual stream after a block, and what attention and the MLP add to it."""


@dataclass(frozen=True, repr=False, eq=False)
class LayerSpectra(ShapesRepr):
    r"""The spectra of one map a layer.

    Attributes:
        s: singular values of the joint map of each layer, the largest first, ``[l, d]``.
        without_first: of the map without the first token; None where there is no other.
        u: the leading left vectors of each layer, ``[l, k, d]``, signed so that $u \cdot f \ge 0$ with the model's
            output $f$.
        alone: those of the maps of single tokens, ``[n, l, k, d]``; None where they were not asked for.
    """

    s: Float[np.ndarray, "l d"]
    without_first: Float[np.ndarray, "l d"] | None
    u: Float[np.ndarray, "l k d"]
    alone: Float[np.ndarray, "n l k d"] | None = None

    @property
    def stable_rank(self) -> Float[np.ndarray, " l"]:
        """The stable rank of each layer's map."""
        return np.array([stable_rank(s) for s in self.s])

    @property
    def stable_rank_without_first(self) -> Float[np.ndarray, " l"] | None:
        """That of the map without the first token."""
        return None if self.without_first is None else np.array([stable_rank(s) for s in self.without_first])

    def path(self, directions: int = 2) -> Float[np.ndarray, "l n"]:
        r"""The cosines $u_i^{(l)} \cdot u_i^{(L)}$ of the leading left vectors with those of the last layer.

        Source: arXiv 2505.24293, figure 4B, for the maps of `cumulative_spectra`.
        """
        return np.einsum("lnd,nd->ln", self.u[:, :directions], self.u[-1, :directions])


def cumulative_spectra(
    model: Decoder,
    x: Float[Array, "t d"],
    *,
    kinds: tuple[str, ...] = CONTRIBUTIONS,
    position: int = -1,
    rule: Rule | None = None,
    k: int = 8,
    alone: tuple[int, ...] = (),
) -> dict[str, LayerSpectra]:
    """The maps from the embeddings to each layer's site at `position`, through the final norm held at the site's value.

    All layers come from one forward pass of the columns; of each layer its Gram matrix is kept. It takes as many passes
    as `t` dense maps.

    Args:
        model: any decoder.
        x: the input embeddings.
        kinds: the kinds of sites, each with a result of its own.
        position: where the sites are read; negative counts from the last token.
        rule: the freeze rule of gated MLPs; the model's own unless given.
        k: how many left vectors to give.
        alone: tokens up to `position` whose own maps' left vectors are given too.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: no such position, or a kind that the model does not have.
    """
    position = _checked(model, x, kinds, position)
    if late := [token for token in alone if not 0 <= token <= position]:
        raise SiteError(f"Tokens: expected some of 0..{position}, which reach the position; found {late[0]}.")
    held, norms, output = _record_sites(model, x, position, kinds, rule or model.rule)
    depth, (tokens, d) = model.config.num_hidden_layers, x.shape
    block = _columns(model, tokens)
    grams = {kind: np.zeros((2, depth, d, d)) for kind in kinds}
    leading: dict[str, dict[int, np.ndarray]] = {kind: {} for kind in kinds}
    for token in range(position + 1):
        own = {kind: np.zeros((depth, d, d)) for kind in kinds}
        for start in range(0, d, block):
            v = jnp.zeros((block, tokens, d), x.dtype)
            v = v.at[:, token].set(jax.nn.one_hot(jnp.arange(start, start + block), d, dtype=x.dtype))
            for kind, columns in _push_to_sites(model, held, norms, v, position, kinds).items():
                wide = np.moveaxis(np.asarray(columns, np.float64), 0, -1)
                own[kind] += wide @ np.swapaxes(wide, -1, -2)
        for kind in kinds:
            grams[kind][min(token, 1)] += own[kind]
            if token in alone:
                leading[kind][token] = np.stack([_leading(each, output, k)[0] for each in own[kind]])
    found = {kind: _spectra([Gram(*parts) for parts in zip(*grams[kind], strict=True)], output, k) for kind in kinds}
    if not alone:
        return found
    return {kind: replace(found[kind], alone=np.stack([leading[kind][token] for token in alone])) for kind in kinds}


def single_layer_spectra(
    model: Decoder,
    x: Float[Array, "t d"],
    *,
    kinds: tuple[str, ...] = CONTRIBUTIONS,
    position: int = -1,
    rule: Rule | None = None,
    k: int = 8,
) -> dict[str, LayerSpectra]:
    """The map through each layer alone: from the stream that enters it, at all positions, to its site at `position`.

    The final norm takes no part. Arguments and errors are those of `cumulative_spectra`.
    """
    position = _checked(model, x, kinds, position)
    held, _, output = _record_sites(model, x, position, kinds, rule or model.rule)
    depth, (tokens, d) = model.config.num_hidden_layers, x.shape
    block = _columns(model, tokens)
    found = {}
    for kind in kinds:
        pulls = [functools.partial(_pull_layer, model, held, layer, position, kind) for layer in range(depth)]
        found[kind] = _spectra(
            [gram_from_rows(pull, (d, tokens, d), x.dtype, block=block) for pull in pulls], output, k
        )
    return found


def spectra_to_output(
    model: Decoder,
    x: Float[Array, "t d"],
    *,
    kinds: tuple[str, ...] = ("resid_pre",),
    position: int = -1,
    rule: Rule | None = None,
    k: int = 8,
    memory: int = MAX_BAND_BYTES,
) -> dict[str, LayerSpectra]:
    """The maps from each layer's site, at all positions, to the output at `position`, from one backward pass.

    Args:
        model: any decoder.
        x: the input embeddings.
        kinds: the kinds of sites, each with a result of its own.
        position: the position of the output; negative counts from the last token.
        rule: the freeze rule of gated MLPs; the model's own unless given.
        k: how many left vectors to give.
        memory: bytes of maps that may be kept together: all layers' where they fit, else the pass is repeated for a
            part of the kinds at a time.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: no such position, or a kind that the model does not have.
    """
    position = _checked(model, x, kinds, position)
    held, _, output = _record_sites(model, x, position, (), rule or model.rule)
    size = model.config.num_hidden_layers * model.config.hidden_size * x.size * x.dtype.itemsize
    together = max(1, memory // size)
    found = {}
    for start in range(0, len(kinds), together):
        for kind, maps in layer_maps(model, held, kinds=kinds[start : start + together], position=position).items():
            found[kind] = _spectra([gram_from_dense(np.asarray(jacobian)) for jacobian in maps], output, k)
    return found


def _checked(model: Decoder, x: Float[Array, "t d"], kinds: tuple[str, ...], position: int) -> int:
    model.check_embeddings(x)
    checked_kinds(kinds, model.sites)
    return position_in(x.shape[0], position)


def _columns(model: Decoder, tokens: int) -> int:
    """Vectors that pass together."""
    d, f = model.config.hidden_size, model.config.intermediate_size
    size = jnp.dtype(model.dtype).itemsize
    return d if d * tokens * d * size <= 2**26 else default_block(d, tokens, max(d, f) * size)


def _spectra(grams: list[Gram], output: Float[Array, " d"], k: int) -> LayerSpectra:
    spectra, rests, vectors = [], [], []
    for each in grams:
        u, s = _leading(each.joint, output, k)
        vectors.append(u)
        spectra.append(s)
        rests.append(singular_values(each.rest))
    alone = not any(np.any(each.rest) for each in grams)
    return LayerSpectra(np.stack(spectra), None if alone else np.stack(rests), np.stack(vectors))


def _leading(
    gram: Float[np.ndarray, "d d"], output: Float[Array, " d"], k: int
) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, " d"]]:
    """The `k` leading left vectors, signed by the output, and all singular values."""
    u, s = left_vectors(gram)
    leading = u[:, :k].T
    return np.where(leading @ np.asarray(output, np.float64) < 0, -1, 1)[:, None] * leading, s


@functools.partial(jax.jit, static_argnames=("kinds", "rule"))
def _record_sites(
    model: Decoder, x: Array, position: Any, kinds: tuple[str, ...], rule: Rule
) -> tuple[FrozenFactors, dict[str, Any], Array]:
    """What is held; the factors of the final norm at each layer's site; and the output."""
    recording = record(model, x, kinds, rule=rule)
    norms = {}
    for kind, values in recording.sites.items():
        recorded = Record(rule)
        model.norm(values[:, position], Context(recorded))
        norms[kind] = recorded.factors
    return recording.frozen, norms, recording.output[position]


@functools.partial(jax.jit, static_argnames="kinds")
def _push_to_sites(
    model: Decoder, held: FrozenFactors, norms: dict[str, Any], v: Array, position: Any, kinds: tuple[str, ...]
) -> dict[str, Float[Array, "b l d"]]:
    bare = without_biases(model)
    evaluation = Evaluation(fold=folding_pays(v.shape[0], v.shape[-1], model.config.intermediate_size))

    _, sites = bare.scan(
        jnp.moveaxis(v, 1, 0),
        lambda row: Context(Replay(row), evaluation=evaluation),
        held.layers,
        collect=lambda ctx: {kind: ctx.hooks.values[kind][position] for kind in kinds},
    )
    normed = {kind: bare.norm(sites[kind], Context(Replay(norms[kind]))) for kind in kinds}
    return {kind: jnp.moveaxis(value, 1, 0) for kind, value in normed.items()}


@functools.partial(jax.jit, static_argnames="kind")
def _pull_layer(
    model: Decoder, held: FrozenFactors, layer: Any, position: Any, kind: str, u: Float[Array, "b d"]
) -> Float[Array, "b t d"]:
    evaluation = Evaluation(fold=folding_pays(u.shape[0], u.shape[-1], model.config.intermediate_size))
    factors = jax.tree.map(lambda a: a[layer], held.layers)

    def through(bare: Decoder, v: Float[Array, "t b d"]) -> Float[Array, "b d"]:
        ctx = Context(Replay(factors), evaluation=evaluation)
        bare.block(layer, v, ctx)
        return ctx.hooks.values[kind][position]

    (rows,) = transpose(through, model, jax.ShapeDtypeStruct((held.tokens, *u.shape), u.dtype))(u)
    return jnp.moveaxis(rows, 0, 1)
