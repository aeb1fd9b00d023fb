r"""Activation patching: the values of another prompt put into this one, beside what the map says they will do.

One value, at one layer and position, is replaced by what stands there in a prompt of as many tokens, and the ordinary
model runs on. The held model is linear in that value too, so that the map says exactly what it would become there:
$u \cdot J_{l,t}\,(h'_{l,t} - h_{l,t})$, for all layers and positions from one backward pass.

Source: Meng et al., "Locating and Editing Factual Associations in GPT", 2022; with the ordinary gradient in the place
of the map's rows the prediction is the "attribution patching" of Neel Nanda, 2023.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxlin.attribution.components import read, read_back
from jaxlin.causal.effects import BATCH, slopes, spearman
from jaxlin.common.arrays import ShapesRepr
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.frozen import record
from jaxlin.linearize.targets import Target, Words, checked_target, without_words
from jaxlin.nn.arguments import check_model
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Plain
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import Kind, known_kinds, position_in
from jaxlin.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, repr=False)
class Patching(ShapesRepr):
    """What each value of another prompt does in this one.

    Attributes:
        value: the logit, difference of logits or projection that the target reads of this prompt.
        other: the same of the other prompt.
        first: the first position at which the prompts differ; nothing before it does, and effects there are zero.
        effects: how much `value` rises when the value at one layer and position is the other prompt's, in the ordinary
            model, ``[layers, p]`` for the positions up to the one read.
        predicted: how much it rises in the held model: what the map says, ``[layers, p]``.
    """

    value: float
    other: float
    first: int
    effects: Float[np.ndarray, "l p"]
    predicted: Float[np.ndarray, "l p"]

    @property
    def recovered(self) -> Float[np.ndarray, "l p"]:
        """`effects` as shares of the whole difference between the two prompts; not finite where there is none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.effects / np.float64(self.other - self.value)

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between `effects` and `predicted` from `first` on; not a number where either is constant."""
        return spearman(self.effects[:, self.first :].ravel(), self.predicted[:, self.first :].ravel())


def activation_patching(
    model: Decoder,
    x: Float[Array, "t d"],
    other: Float[Array, "t d"],
    target: Target | Words,
    *,
    kind: Kind = "resid_pre",
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
) -> Patching:
    """Put each value of `other` at a kind of site into the run at `x`, one layer and position at a time.

    A forward pass of the ordinary model for each, from the first token on that differs; what the map says takes two
    more, and one backward.

    Args:
        model: any decoder.
        x: the input embeddings of the prompt that is run.
        other: those of the prompt that the values come from, of as many tokens.
        target: what is read, as in `jaxlin.attribute`.
        kind: ``"resid_pre"``, ``"attn_out"``, ``"resid_mid"``, ``"mlp_out"`` or ``"resid_post"``.
        position: where it is read; negative counts from the last token. Later tokens are left out.
        tokenizer: the model's, to read words with, each in the spelling that is likelier after `x`.
        progress: show a bar where it takes long.

    Raises:
        PromptError: `x` or `other` is not of shape ``[t, d]``.
        JaxlinError: prompts of different lengths, or a target that is none.
        SiteError: no such position, or a kind that the model does not have.
        TokenizerError: a word that is not one token.
    """
    check_model(model)
    model.check_embeddings(x)
    model.check_embeddings(other)
    known_kinds((kind,), model.sites)
    if x.shape != other.shape:
        raise JaxlinError(f"Patching: expected prompts of as many tokens; found {x.shape[0]} and {other.shape[0]}.")
    seen = position_in(x.shape[0], position) + 1
    x, other = x[:seen], other[:seen]
    what = checked_target(model, without_words(model, tokenizer, target, x, -1), x.dtype)
    value, reached, values, said = _predicted(model, x, other, what, kind)
    predicted = np.asarray(said)
    differing = np.flatnonzero(np.any(np.asarray(x != other), axis=1))
    first = int(differing[0]) if len(differing) else seen
    effects = np.zeros_like(predicted)
    layers = range(len(effects)) if first < seen else []
    for layer in tqdm(layers, unit="layer", desc="patches", delay=1, disable=None if progress else True):
        reads = _patched_each(model, x, values[layer], layer, jnp.arange(first, seen), what, kind)
        effects[layer, first:] = np.asarray(reads) - value
    return Patching(float(value), float(reached), first, effects, predicted)


@functools.partial(jax.jit, static_argnames="kind")
def _predicted(
    model: Decoder, x: Float[Array, "p d"], other: Float[Array, "p d"], target: Array, kind: Kind
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "l p d"], Float[Array, "l p"]]:
    """What `target` reads of both prompts, the values of the other, and the rise that the map says of each."""
    there = record(model, other, (kind,))
    values = there.sites[kind]
    here = record(model, x, (kind,))
    value, _, direction = read_back(model, here, -1, target)
    rows = slopes(model, here.frozen, kind, values, direction)
    predicted = jnp.einsum("lpd,lpd->lp", rows, values - here.sites[kind], precision=HIGHEST)
    return value, read(model, there.output[-1], target, Context()), values, predicted


@functools.partial(jax.jit, static_argnames="kind")
def _patched_each(
    model: Decoder,
    x: Float[Array, "p d"],
    values: Float[Array, "p d"],
    layer: Any,
    tokens: Int[Array, " n"],
    target: Array,
    kind: Kind,
) -> Float[Array, " n"]:
    """What `target` reads at the last position, with the value of a layer at each of `tokens` replaced."""

    def patched(token: Array) -> Array:
        def make_context(index: Array) -> Context:
            here = (index == layer) & (jnp.arange(x.shape[0]) == token)
            return Context(Plain(model.rule), Hooks(edits={kind: lambda h: jnp.where(here[:, None], values, h)}))

        stream, _ = model.scan(x, make_context, jnp.arange(model.config.num_hidden_layers))
        return read(model, model.norm(stream, Context())[-1], target, Context())

    return jax.lax.map(patched, tokens, batch_size=BATCH)
