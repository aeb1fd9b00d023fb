r"""The contribution of each token's residual stream to a logit, at every layer.

The frozen model is affine from any layer on: $u \cdot f(x) = \sum_t u \cdot J_{l,t} x_{l,t} + u \cdot b_l$, with the
stream $x_l$ that enters block $l$, the map $J_l$ from there to the output, and the contribution $b_l$ of the biases
from block $l$ on. At every layer the terms sum to the same value; attention moves contributions between tokens.
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
from jaxlin.linearize.backward import pull_back
from jaxlin.linearize.frozen import record, rule_of
from jaxlin.linearize.targets import ResolvedTarget, Target, resolve_target, target_direction
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import position_in
from jaxlin.results import Result, traced_to


@dataclass(frozen=True, eq=False, repr=False)
class StreamContributions(Result):
    r"""The contributions of the tokens' streams to one value: ``tokens[l].sum() + bias[l] == value`` at every layer.

    Attributes:
        value: the logit, difference of logits or $u \cdot f(x)$, from the forward pass.
        tokens: the contribution of the stream of each token before each block, ``[layers + 1, t]``. The first row
            belongs to the embeddings, the last to the stream after the last block.
        bias: the contribution of the additive biases from each block on, ``[layers + 1]``.
    """

    AXES: ClassVar = {"tokens": ("layer", "position"), "bias": ("layer",)}
    PROPERTIES: ClassVar = ("defect",)

    value: float
    tokens: Float[np.ndarray, "n t"]
    bias: Float[np.ndarray, " n"]

    @property
    def defect(self) -> float:
        """The largest error of the sum of any layer, relative to the largest of its contributions and `value`."""
        rows = np.concatenate([self.tokens, self.bias[:, None]], axis=1)
        scale = np.maximum(np.abs(rows).max(axis=1), abs(self.value))
        errors = np.abs(rows.sum(axis=1) - self.value)
        return float(np.max(errors / np.where(scale > 0, scale, 1)))

    def _draw(self, ax: Any) -> None:
        """A heat map of the contributions, layer by token."""
        layers, positions = self.tokens.shape
        plots.heat_map(ax, self.tokens, list(map(str, range(layers))), self._labels("position", positions))
        plots.write(ax, title=f"Contributions of the stream to {self.value:.3f}", ylabel="before layer")


@checked
def stream_contributions(
    model: Decoder, x: Float[Embeddings, "t d"], target: Target, *, position: int = -1, rule: Rule | str | None = None
) -> StreamContributions:
    """The exact contribution of the stream of each token, before every block, to the logit of `target`.

    This takes one forward pass, which records the streams, and one backward pass with gradients at every layer. The
    arguments and errors are those of `jaxlin.attribute`, except that a target is not given as words.
    """
    check_not_traced("Stream contributions", model, x, target)
    prompt, x = x, model.check_embeddings(x)
    position = position_in(x.shape[0], position)
    resolved = resolve_target(model, target, x, position)
    value, tokens, bias = jax.device_get(_contributions(model, x, position, resolved, rule_of(model, rule)))
    result = StreamContributions(float(value), tokens, bias)
    return traced_to(result, model, prompt, rule=rule, target=resolved, position=position)


@functools.partial(jax.jit, static_argnames="rule")
def _contributions(
    model: Decoder, x: Float[Embeddings, "t d"], position: Any, target: ResolvedTarget, rule: Rule
) -> tuple[Float[Array, ""], Float[Array, "n t"], Float[Array, " n"]]:
    kinds = ("resid_pre", *model.shared_sites)
    recording = record(model, x, kinds, rule=rule)
    streams = recording.sites["resid_pre"]
    value, final_bias, direction = target_direction(model, recording, target, position)
    gradients = pull_back(model, recording.frozen, direction, recording.sites, biases=True)
    bias = jnp.cumsum(gradients.biases[::-1])[::-1] + final_bias[None]
    by_site = [
        jnp.sum((gradients.added[kind] * recording.sites[kind]).reshape(*streams.shape[:2], -1), axis=-1)
        for kind in kinds
    ]
    last = jnp.einsum("td,td->t", direction, recording.stream, precision=HIGHEST)
    tokens = jnp.concatenate([sum(by_site[1:], by_site[0]), last[None]])
    return value, tokens, jnp.concatenate([bias, final_bias[None]])
