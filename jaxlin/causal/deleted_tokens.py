"""Deletion: what the ordinary model does without each token, beside the contribution of that token by the map."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin import plots
from jaxlin.attribution.logit import attribute
from jaxlin.causal.effects import BATCH_SIZE, prompt_up_to, spearman
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.targets import Target, Words, read_target, resolve_target
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import Embeddings
from jaxlin.results import Result, traced_to
from jaxlin.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, repr=False)
class Deletion(Result):
    """The effect of deleting each token, beside its contribution by the map.

    Attributes:
        value: the value of the target in the full prompt: a logit, a difference of two, or a projection.
        effects: how much `value` falls when a token is deleted, for each token up to the position that is read,
            ``[p]``.
        contributions: the contribution of each of these tokens by `jaxlin.attribute`, ``[p]``.
    """

    AXES: ClassVar = dict.fromkeys(("effects", "contributions"), ("position",))
    PROPERTIES: ClassVar = ("rank_correlation", "rank_correlation_without_first")

    value: float
    effects: Float[np.ndarray, " p"]
    contributions: Float[np.ndarray, " p"]

    @property
    def rank_correlation(self) -> float:
        """Spearman's rank correlation of `effects` and `contributions`; NaN if either is constant."""
        return spearman(self.effects, self.contributions)

    @property
    def rank_correlation_without_first(self) -> float:
        """The same without the first token, whose deletion disturbs many models most."""
        return spearman(self.effects[1:], self.contributions[1:])

    def _draw(self, ax: Any) -> None:
        """Bars of effects and contributions, over the text."""
        series = {"fall when deleted": self.effects, "contribution by the map": self.contributions}
        plots.token_bars(ax, series, self._labels("position", len(self.effects)))
        plots.write(ax, title="Deletion of each token", ylabel="change of the target")


@checked
def deletion(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    target: Target | Words,
    *,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
) -> Deletion:
    """Delete each token up to `position` in turn, and read `target` at the last token that remains.

    The tokens after a deleted one move up by one position. If the token at `position` itself is deleted, `target` is
    read at the token before it. Tokens after `position` are left out.

    Args:
        model: any decoder.
        x: the input embeddings.
        target: the target, as in `jaxlin.attribute`.
        position: where the target is read; negative counts from the last token.
        tokenizer: the model's tokenizer, if the target is words.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: an invalid target, or a prompt of one token.
        SiteError: no such position.
        TokenizerError: a word that is not one token.
    """
    prompt, x = x, prompt_up_to(model, x, position)
    if len(x) < 2:
        raise JaxlinError("Deletion: expected a position with a token before it; found the first.")
    resolved = resolve_target(model, target, x, -1, tokenizer)
    attribution = attribute(model, x, resolved, neurons=0)
    values = _without_each_token(model, x, resolved)
    result = Deletion(attribution.value, attribution.value - np.asarray(values), attribution.tokens)
    return traced_to(result, model, prompt, tokenizer=tokenizer, target=resolved, position=position)


@jax.jit
def _without_each_token(model: Decoder, x: Float[Embeddings, "p d"], target: Array) -> Float[Array, " p"]:
    indices = jnp.arange(x.shape[0] - 1)

    def without(token: Array) -> Array:
        # The tokens after the deleted one move up.
        remaining = indices + (indices >= token)
        moved = model.moved_embeddings(x[remaining], remaining, indices)
        return read_target(model, model(moved)[-1], target, Context())

    return jax.lax.map(without, jnp.arange(x.shape[0]), batch_size=BATCH_SIZE)
