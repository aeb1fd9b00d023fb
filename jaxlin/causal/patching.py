r"""Activation patching: the effect of a value from another prompt in this one, beside what the map predicts.

One value, at one layer and position, is replaced by the value there in a prompt of equally many tokens, and the
ordinary model runs on. The frozen model is linear in that value too, so the map has an exact prediction of the change:
$u \cdot J_{l,t}\,(h'_{l,t} - h_{l,t})$, for all layers and positions from one backward pass.

Source: Meng et al., "Locating and Editing Factual Associations in GPT", 2022. With the ordinary gradient in place of
the rows of the map, the prediction is the "attribution patching" of Neel Nanda, 2023.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin import plots
from jaxlin.causal.effects import prompt_up_to, read_edited, spearman
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.progress import progress_bar
from jaxlin.linearize.backward import pull_back
from jaxlin.linearize.frozen import record
from jaxlin.linearize.targets import Target, Words, read_target, resolve_target, target_direction
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import Kind, checked_kinds
from jaxlin.results import Result, traced_to
from jaxlin.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, repr=False)
class Patching(Result):
    """The effect of each value of another prompt in this one.

    Attributes:
        value: the value of the target in this prompt: a logit, a difference of two, or a projection.
        other: its value in the other prompt.
        first: the first position at which the prompts differ. At earlier positions the effects are zero.
        effects: how much `value` rises in the ordinary model when the value at one layer and position comes from the
            other prompt, ``[layers, p]`` for the positions up to the one that is read.
        predicted: how much it rises in the frozen model, ``[layers, p]``: the prediction of the map.
    """

    AXES: ClassVar = dict.fromkeys(("effects", "predicted"), ("layer", "position"))
    PROPERTIES: ClassVar = ("rank_correlation",)

    value: float
    other: float
    first: int
    effects: Float[np.ndarray, "l p"]
    predicted: Float[np.ndarray, "l p"]

    @property
    def recovered(self) -> Float[np.ndarray, "l p"]:
        """`effects` as shares of `other` minus `value`; not finite if these are equal."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.effects / np.float64(self.other - self.value)

    @property
    def rank_correlation(self) -> float:
        """Spearman's rank correlation of `effects` and `predicted` from `first` on; NaN if either is constant."""
        return spearman(self.effects[:, self.first :].ravel(), self.predicted[:, self.first :].ravel())

    def _draw(self, ax: Any) -> None:
        """A heat map of the effects, layer by token."""
        layers, positions = self.effects.shape
        plots.heat_map(ax, self.effects, list(map(str, range(layers))), self._labels("position", positions))
        kind = "value" if self.provenance is None else self.provenance.settings.get("kind", "value")
        plots.write(ax, title=f"Rise of the target with the other prompt's {kind}", ylabel="layer")


@checked
def activation_patching(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    other: Float[Embeddings, "t d"],
    target: Target | Words,
    *,
    kind: Kind = "resid_pre",
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
) -> Patching:
    """Put each value of `other` at a kind of site into the run at `x`, one layer and position at a time.

    There is one forward pass of the ordinary model for each layer and position, from the first token that differs; the
    predictions of the map take two more, and one backward pass.

    Args:
        model: any decoder.
        x: the input embeddings of the prompt that is run.
        other: the input embeddings of the prompt that the values come from, which has as many tokens.
        target: the target, as in `jaxlin.attribute`.
        kind: ``"resid_pre"``, ``"attn_out"``, ``"resid_mid"``, ``"mlp_out"`` or ``"resid_post"``.
        position: where the target is read; negative counts from the last token. Later tokens are left out.
        tokenizer: the model's tokenizer, if the target is words. Of the spellings of a word, with a space before it and
            without, the one that is likelier after `x` is read.
        progress: show a progress bar if it takes more than a second.

    Raises:
        PromptError: `x` or `other` is not of shape ``[t, d]``.
        JaxlinError: prompts of different lengths, or an invalid target.
        SiteError: no such position, or a kind that the model does not have.
        TokenizerError: a word that is not one token.
    """
    check_not_traced("Causal check", model, x)
    prompt, (x, other) = x, map(model.check_embeddings, (x, other))
    checked_kinds((kind,), model.sites)
    if x.shape != other.shape:
        raise JaxlinError(f"Patching: expected prompts of as many tokens; found {x.shape[0]} and {other.shape[0]}.")
    x, other = (prompt_up_to(model, prompt, position) for prompt in (x, other))
    checked = resolve_target(model, target, x, -1, tokenizer)
    value, other_value, other_sites, predicted = _predict(model, x, other, checked, kind)
    differing = np.flatnonzero(np.any(np.asarray(x) != np.asarray(other), axis=1))
    first = int(differing[0]) if len(differing) else len(x)
    effects = np.zeros(predicted.shape, predicted.dtype)
    layers = range(len(effects)) if first < len(x) else []
    for layer in progress_bar(layers, show=progress, unit="layer", desc="patches"):
        values = _patch_each(model, x, other_sites[layer], layer, jnp.arange(first, len(x)), checked, kind)
        effects[layer, first:] = np.asarray(values) - value
    result = Patching(float(value), float(other_value), first, effects, np.asarray(predicted))
    settings = {"target": checked, "position": position, "kind": kind}
    return traced_to(result, model, prompt, tokenizer=tokenizer, **settings)


@functools.partial(jax.jit, static_argnames="kind")
def _predict(
    model: Decoder, x: Float[Embeddings, "p d"], other: Float[Embeddings, "p d"], target: Array, kind: Kind
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "l p d"], Float[Array, "l p"]]:
    """The values of `target` in both prompts, the values at the sites of the other, and their predicted effects."""
    there, here = (record(model, prompt, (kind,)) for prompt in (other, x))
    value, _, direction = target_direction(model, here, target, -1)
    other_sites = there.sites[kind]
    gradients = pull_back(model, here.frozen, direction, {kind: other_sites}).added[kind]
    predicted = jnp.einsum("lpd,lpd->lp", gradients, other_sites - here.sites[kind], precision=HIGHEST)
    return value, read_target(model, there.output[-1], target, Context()), other_sites, predicted


@functools.partial(jax.jit, static_argnames="kind")
def _patch_each(
    model: Decoder,
    x: Float[Embeddings, "p d"],
    values: Float[Array, "p d"],
    layer: Any,
    tokens: Int[Array, " n"],
    target: Array,
    kind: Kind,
) -> Float[Array, " n"]:
    """The value of `target` at the last position, with the value of a layer at each of `tokens` in turn replaced."""

    def patched(token: Array, h: Array) -> Array:
        return jnp.where((jnp.arange(x.shape[0]) == token)[:, None], values, h)

    return read_edited(model, x, target, kind, layer, patched, tokens)
