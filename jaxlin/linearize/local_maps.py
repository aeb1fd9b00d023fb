"""`local_map`: one forward pass records the nonlinear factors, and the `LocalMap` of the model at its input is made."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.linearize.frozen import record, replay_between, rule_of
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.arguments import check_model
from jaxlin.nn.biases import has_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.sites import EMBED, Place, Site, ends, position_in

MAX_PROMPT_CUTS = 8
"""At how many lengths a prompt may be cut after the position of the output, each of which is compiled."""


def local_map(
    model: Decoder,
    x: Float[Array, "t d"],
    *,
    source: Site = "embed",
    target: Site = "final",
    position: int = -1,
    rule: Rule | str | None = None,
    remat: bool = False,
) -> LocalMap:
    r"""The exact local linear map of `model` at the input embeddings `x`.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings, as `model.embed` gives them.
        source: the site the map starts from: ``"embed"``, or a pair of a kind (``"resid_pre"``, ``"attn_out"``,
            ``"resid_mid"``, ``"mlp_out"`` or ``"resid_post"``) and a layer, as ``("resid_post", 12)``.
        target: the site it leads to: such a pair, or ``"final"``, after the final norm.
        position: the position of the output; negative counts from the last token.
        rule: the freeze rule of gated MLPs; the model's own unless given.
        remat: compute the factors again for each pass instead of keeping them, see `jaxlin.freeze`.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: no such site or position, or a target that does not come after the source.
        JaxlinError: no such rule.
    """
    check_model(model)
    model.check_embeddings(x)
    tokens = x.shape[0]
    start, end = ends(source, target, model.config.num_hidden_layers, model.sites)
    position, chosen = position_in(tokens, position), rule_of(model, rule)
    value, output, bias, frozen = _record(model, x, position, start, end, chosen, remat)
    reach = _reach(position, tokens)
    if remat and not model.same_frequencies(reach, tokens):
        reach = tokens
    held = frozen.first(reach)
    return LocalMap(model, value, output, bias, held, position, start, end, position == reach - 1)


def _reach(position: int, tokens: int) -> int:
    """After how many tokens to cut a prompt: all up to `position` are kept."""
    step = -(-tokens // MAX_PROMPT_CUTS)
    return min(-(-(position + 1) // step) * step, tokens)


@functools.partial(jax.jit, static_argnames=("start", "end", "rule", "remat"))
def _record(
    model: Decoder, x: Array, position: Any, start: Place, end: Place, rule: Rule, remat: bool
) -> tuple[Any, ...]:
    # The values at a kind of site are kept for all layers: a long prompt has no room for what is not asked for.
    kinds = {place.kind for place in (start, end) if not (place == EMBED or place.final)}
    recording = record(model, x, tuple(kinds), rule=rule, remat=remat)
    value, reached = x if start == EMBED else recording.value_at(start), recording.value_at(end)
    if start.is_cut and not has_biases(model):
        rest = jnp.zeros_like(reached)
    else:
        begin = start if start.is_cut else EMBED
        rest = replay_between(model, recording.frozen, x, begin, end, {start: jnp.zeros_like(value)})
    return value, reached[position], rest[position], recording.frozen
