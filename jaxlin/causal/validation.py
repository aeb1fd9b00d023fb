r"""How far the map's account holds: deleted tokens, removed directions, and inputs beside its own."""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.attribution.components import read
from jaxlin.attribution.logit import attribute
from jaxlin.causal.effects import BATCH, spearman
from jaxlin.common.arrays import ShapesRepr, relative_error
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.targets import Target, Words, checked_target, without_words
from jaxlin.nn.arguments import check_model
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import position_in
from jaxlin.tokenizer import Tokenizer

Side = Literal["right", "left"]


@dataclass(frozen=True, eq=False, repr=False)
class Deletion(ShapesRepr):
    """Leave-one-out deletion of tokens beside what the map attributes to them.

    Attributes:
        value: the logit, difference of logits or projection that the target reads of the whole prompt.
        effects: how much `value` falls when a token is deleted, for each up to the position read, ``[p]``.
        contributions: what `jaxlin.attribute` gives each of them, ``[p]``.
    """

    value: float
    effects: Float[np.ndarray, " p"]
    contributions: Float[np.ndarray, " p"]

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between effects and contributions; not a number where either is constant."""
        return spearman(self.effects, self.contributions)

    @property
    def rank_correlation_without_first(self) -> float:
        """The same without the first token, whose deletion disturbs many models as no other does."""
        return spearman(self.effects[1:], self.contributions[1:])


@dataclass(frozen=True, eq=False, repr=False)
class Removal(ShapesRepr):
    """A prediction without some singular directions, beside the same without random ones of the same size.

    Attributes:
        size: the norm of what was removed.
        kl: $KL(p || p')$ in nats, of the prediction before from the prediction after.
        change: how much the target rises.
        random_kl: of each random removal of the same norm, ``[n]``.
        random_change: of each random removal of the same norm, ``[n]``.
    """

    size: float
    kl: float
    change: float
    random_kl: Float[np.ndarray, " n"]
    random_change: Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False, repr=False)
class Validity(ShapesRepr):
    r"""How the map at $x$ predicts the output at $x'$, where one token is swapped.

    Attributes:
        distance: $\lVert x' - x \rVert$, for each token swapped and each substitute, ``[p, n]``.
        error: $\lVert J x' + b - f(x') \rVert / \lVert f(x') \rVert$, ``[p, n]``.
        unchanged: $\lVert f(x) - f(x') \rVert / \lVert f(x') \rVert$, ``[p, n]``: the error of predicting no change.
            The map says something of $x'$ only where its error is smaller.
    """

    distance: Float[np.ndarray, "p n"]
    error: Float[np.ndarray, "p n"]
    unchanged: Float[np.ndarray, "p n"]


def deletion(
    model: Decoder,
    x: Float[Array, "t d"],
    target: Target | Words,
    *,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
) -> Deletion:
    """Delete each token up to `position` and read `target` anew, at the last token that is left.

    Tokens after a deleted one move up by one position. Without the token at the position itself, the prediction of the
    token before it is read. Tokens after the position are left out.

    Args:
        model: any decoder.
        x: the input embeddings.
        target: what is read, as in `jaxlin.attribute`.
        position: where it is read; negative counts from the last token.
        tokenizer: the model's, to read words with.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: a target that is none, or no token that could be deleted.
        SiteError: no such position.
        TokenizerError: a word that is not one token.
    """
    check_model(model)
    model.check_embeddings(x)
    seen = position_in(x.shape[0], position) + 1
    if seen < 2:
        raise JaxlinError("Deletion: expected a position with a token before it; found the first.")
    x = x[:seen]
    ids = without_words(model, tokenizer, target, x, -1)
    found = attribute(model, x, ids, neurons=0)
    without = _without_each(model, x, checked_target(model, ids, x.dtype))
    return Deletion(found.value, found.value - np.asarray(without), found.tokens)


def removal(
    model: Decoder,
    x: Float[Array, "t d"],
    triplets: SVD,
    target: Target | Words,
    *,
    side: Side = "right",
    k: int | None = None,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    samples: int = 16,
    seed: int = 0,
) -> Removal:
    r"""Remove the leading singular directions, and as many times random ones of the same norm.

    On the right the embeddings lose their part along $v_1 \dots v_k$ and the untouched model runs anew; on the left the
    output $f(x)$ loses its part along $u_1 \dots u_k$, before the unembedding. A random removal subtracts a random
    vector of the norm of what the directions took.

    Args:
        model: any decoder.
        x: the input embeddings.
        triplets: of the map at `x` from the embeddings to the output at `position`, as `LocalMap.svd` gives them.
        target: whose change is measured, as in `jaxlin.attribute`.
        side: which vectors are removed.
        k: how many of the triplets; all unless given.
        position: where the prediction is read; negative counts from the last token.
        tokenizer: the model's, to read words with.
        samples: how many random removals.
        seed: of the random vectors.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: a target that is none, no such side, or more triplets than there are.
        SiteError: no such position.
        TokenizerError: a word that is not one token.
    """
    check_model(model)
    model.check_embeddings(x)
    kept = len(triplets.s) if k is None else k
    if not 1 <= kept <= len(triplets.s):
        raise JaxlinError(f"Removal: expected k in 1..{len(triplets.s)}, the triplets given; found {k}.")
    if side not in ("right", "left"):
        raise JaxlinError(f'Removal: expected the side "right" or "left"; found {quoted(side)}.')
    if samples < 0:
        raise JaxlinError(f"Removal: expected 0 random removals or more; found {samples}.")
    at = position_in(x.shape[0], position)
    what = checked_target(model, without_words(model, tokenizer, target, x, at), x.dtype)
    if side == "right":
        whole, directions = x, jnp.asarray(triplets.v[:kept], x.dtype)
    else:
        whole = jax.jit(lambda model, x: model(x))(model, x)[at]
        directions = jnp.asarray(triplets.u[:, :kept].T, x.dtype)
    if directions.shape[1:] != whole.shape:
        raise JaxlinError(
            f"Removal: expected vectors of shape {whole.shape}, as the prompt's; found {directions.shape[1:]}."
        )
    along = jnp.tensordot(directions, whole, whole.ndim, precision=HIGHEST)
    part = jnp.tensordot(along, directions, 1, precision=HIGHEST)
    size = jnp.linalg.norm(part)
    noise = jax.random.normal(jax.random.key(seed), (samples, *whole.shape), x.dtype)
    norms = jnp.sqrt(jnp.sum(jnp.square(noise), axis=tuple(range(1, noise.ndim)), keepdims=True))
    removed = jnp.concatenate([jnp.zeros_like(part)[None], part[None], noise / norms * size])
    kl, values = (np.asarray(a) for a in _changed(model, whole[None] - removed, at, what, side))
    change = values - values[0]
    return Removal(float(size), float(kl[1]), float(change[1]), kl[2:], change[2:])


def validity(
    model: Decoder,
    x: Float[Array, "t d"],
    substitutes: Float[Array, "n d"],
    *,
    position: int = -1,
    fraction: float = 1.0,
) -> Validity:
    r"""Swap each token up to `position` for each substitute, and compare the map at `x` with the model there.

    Args:
        model: any decoder.
        x: the input embeddings.
        substitutes: embeddings of other tokens.
        position: where the output is read; negative counts from the last token.
        fraction: how much of the way from the token to its substitute is gone, for a radius.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: substitutes of another shape.
        SiteError: no such position.
    """
    check_model(model)
    lmap, width = local_map(model, x, position=position), model.config.hidden_size
    if np.ndim(substitutes) != 2 or substitutes.shape[1] != width or not len(substitutes):
        raise JaxlinError(
            f"Validity: expected substitutes of shape (n, {width}), one or more; found {np.shape(substitutes)}."
        )
    seen = int(lmap.position) + 1
    return Validity(*(np.asarray(a).reshape(seen, -1) for a in _swapped(lmap, substitutes, fraction, seen)))


@jax.jit
def _without_each(model: Decoder, x: Float[Array, "p d"], target: Array) -> Float[Array, " p"]:
    indices = jnp.arange(x.shape[0] - 1)

    def without(token: Array) -> Array:
        # Those after the deleted one move up.
        return read(model, model(x[indices + (indices >= token)])[-1], target, Context())

    return jax.lax.map(without, jnp.arange(x.shape[0]), batch_size=BATCH)


@functools.partial(jax.jit, static_argnames="side")
def _changed(
    model: Decoder, inputs: Float[Array, "n *x"], position: Any, target: Array, side: Side
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The divergence of the first input's prediction from each one's, and what `target` reads of each."""
    outputs = jax.lax.map(lambda x: model(x)[position], inputs, batch_size=BATCH) if side == "right" else inputs
    log_p = jax.nn.log_softmax(model.unembed(outputs), axis=-1)
    kl = jnp.sum(jnp.exp(log_p[:1]) * (log_p[:1] - log_p), axis=-1)
    return kl, jax.vmap(lambda output: read(model, output, target, Context()))(outputs)


@functools.partial(jax.jit, static_argnames="seen")
def _swapped(
    lmap: LocalMap, substitutes: Float[Array, "n d"], fraction: Any, seen: int
) -> tuple[Float[Array, " pn"], Float[Array, " pn"], Float[Array, " pn"]]:
    def swap(pair: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        token, substitute = pair
        step = fraction * (substitutes[substitute] - lmap.x[token])
        x = lmap.x.at[token].add(step)
        reached, predicted = lmap.model(x)[lmap.position], lmap @ x + lmap.bias
        norm = jnp.linalg.norm
        return norm(step), *(relative_error(norm(y - reached), norm(reached)) for y in (predicted, lmap.output))

    pairs = jnp.divmod(jnp.arange(seen * substitutes.shape[0]), substitutes.shape[0])
    return jax.lax.map(swap, pairs, batch_size=BATCH)
