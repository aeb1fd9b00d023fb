"""`local_map`, which freezes the nonlinear factors of a model at one input and returns its `LocalMap` there."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxlin.common.arguments import checked
from jaxlin.common.provenance import ids_of, note_ids
from jaxlin.linearize.frozen import record, replay_between, rule_of
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.biases import has_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.prompt import Embeddings, array_of
from jaxlin.nn.sites import EMBED, Place, Site, ends, position_in

MAX_PROMPT_CUTS = 8
"""How many lengths a prompt may be cut to after the position of the output; each length is compiled separately."""


@checked
def local_map(
    model: Decoder,
    x: Float[Embeddings, "t d"],
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
        x: the input embeddings, from `model.embed`.
        source: the site where the map starts: ``"embed"``, or a pair of a kind (``"resid_pre"``, ``"attn_out"``,
            ``"resid_mid"``, ``"mlp_out"`` or ``"resid_post"``) and a layer, as ``("resid_post", 12)``.
        target: the site where it ends: such a pair, or ``"final"``, after the final norm.
        position: the position of the output; negative counts from the last token.
        rule: the freeze rule of gated MLPs; that of the model if None.
        remat: recompute the factors for each pass instead of storing them, see `jaxlin.freeze`.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: there is no such site or position, or the target does not come after the source.
        JaxlinError: there is no such rule.
    """
    ids, x = ids_of(x), model.check_embeddings(x)
    tokens = x.shape[0]
    start, end = ends(source, target, model.config.num_hidden_layers, model.sites)
    position, freeze_rule = position_in(tokens, position), rule_of(model, rule)
    value, output, bias, frozen = _record(model, x, position, start, end, freeze_rule, remat)
    if ids is not None:
        note_ids(value, ids)
    length = _cut_length(position, tokens)
    if remat and not model.same_frequencies(length, tokens):
        length = tokens
    return LocalMap(model, value, output, bias, frozen.first(length), position, start, end, position == length - 1)


def _cut_length(position: int, tokens: int) -> int:
    """The length to which a prompt is cut: at least `position + 1`, and one of at most `MAX_PROMPT_CUTS` lengths."""
    step = -(-tokens // MAX_PROMPT_CUTS)
    return min(-(-(position + 1) // step) * step, tokens)


@functools.partial(jax.jit, static_argnames=("start", "end", "rule", "remat"))
def _record(
    model: Decoder, x: Embeddings, position: Any, start: Place, end: Place, rule: Rule, remat: bool
) -> tuple[Any, ...]:
    # Each kind of site is recorded in all layers, so others than those needed could exceed the memory.
    kinds = {place.kind for place in (start, end) if not (place == EMBED or place.final)}
    recording = record(model, x, tuple(kinds), rule=rule, remat=remat)
    value, target_value = x if start == EMBED else recording.value_at(start), recording.value_at(end)
    if model.is_cut(start) and not has_biases(model):
        bias = jnp.zeros_like(target_value)
    else:
        begin = start if model.is_cut(start) else EMBED
        zeros = jnp.zeros_like(array_of(value))
        bias = replay_between(model, recording.frozen, array_of(x), begin, end, {start: zeros})
    return value, target_value[position], bias[position], recording.frozen
