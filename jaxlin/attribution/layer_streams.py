r"""What the stream of each token carries to a logit, layer by layer.

The held model from any layer on is linear too: $u \cdot f(x) = \sum_t u \cdot J_{l,t} x_{l,t} + u \cdot b_l$ for the
stream $x_l$ that enters block $l$, its map $J_l$ to the output and the biases $b_l$ from there on. Each layer is a list
that sums to the same value, and from one to the next the contributions move between tokens: attention carries them.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.arrays import ShapesRepr
from jaxlin.linearize.backward import pull_back
from jaxlin.linearize.frozen import record, rule_of
from jaxlin.linearize.targets import ResolvedTarget, Target, resolve_target, target_direction
from jaxlin.nn.arguments import check_model
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import position_in


@dataclass(frozen=True, eq=False, repr=False)
class StreamContributions(ShapesRepr):
    r"""The contributions of the tokens' streams to one value: ``tokens[l].sum() + bias[l] == value`` at every layer.

    Attributes:
        value: the logit, difference of logits or $u \cdot f(x)$, from the forward pass.
        tokens: what the stream of each token contributes before each block, and in the last row after them all,
            ``[layers + 1, t]``. The first row is that of the embeddings.
        bias: what the additive biases from there on contribute, ``[layers + 1]``.
    """

    value: float
    tokens: Float[np.ndarray, "n t"]
    bias: Float[np.ndarray, " n"]

    @property
    def defect(self) -> float:
        """How far any layer's contributions miss `value`, relative to the largest of its own."""
        rows = np.concatenate([self.tokens, self.bias[:, None]], axis=1)
        scale = np.maximum(np.abs(rows).max(axis=1), abs(self.value))
        missed = np.abs(rows.sum(axis=1) - self.value)
        return float(np.max(missed / np.where(scale > 0, scale, 1)))


def stream_contributions(
    model: Decoder, x: Float[Array, "t d"], target: Target, *, position: int = -1, rule: Rule | str | None = None
) -> StreamContributions:
    """The exact contribution of the stream of each token, before every block, to the logit of `target`.

    One forward pass that records, and one backward pass through probes at every layer.

    Args:
        model: any decoder.
        x: the input embeddings.
        target: a token id, a pair of ids for the difference of their logits, or a direction ``[d]``.
        position: where the logit is read; negative counts from the last token.
        rule: the freeze rule of gated MLPs; the model's own unless given.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: a target outside the vocabulary, a pair of equal ones, or no such rule.
        SiteError: no such position.
    """
    check_model(model)
    model.check_embeddings(x)
    at, chosen = position_in(x.shape[0], position), rule_of(model, rule)
    value, tokens, bias = jax.device_get(_streams(model, x, at, resolve_target(model, target, x, at), chosen))
    return StreamContributions(float(value), tokens, bias)


@functools.partial(jax.jit, static_argnames="rule")
def _streams(
    model: Decoder, x: Float[Array, "t d"], position: Any, target: ResolvedTarget, rule: Rule
) -> tuple[Float[Array, ""], Float[Array, "n t"], Float[Array, " n"]]:
    recording = record(model, x, ("resid_pre",), rule=rule)
    held, entering = recording.frozen, recording.sites["resid_pre"]
    value, final_bias, direction = target_direction(model, recording, target, position)
    gradients = pull_back(model, held, direction, {"resid_pre": entering}, biases=True)
    later = jnp.cumsum(gradients.biases[::-1])[::-1] + final_bias[None]
    tokens = jnp.einsum(
        "ltd,ltd->lt",
        jnp.concatenate([gradients.added["resid_pre"], direction[None]]),
        jnp.concatenate([entering, recording.stream[None]]),
        precision=HIGHEST,
    )
    return value, tokens, jnp.concatenate([later, final_bias[None]])
