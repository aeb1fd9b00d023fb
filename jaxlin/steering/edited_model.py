"""The model with edits: the forward pass of a text at once, or of the next tokens of a text with a cache."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.activations import Edit, SteeringError, check_edits
from jaxlin.common.arguments import checked
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.kv_cache import KVCache, LayerCache
from jaxlin.nn.model_edits import LayerRow, edited_value, edits_of_layer, layer_rows
from jaxlin.nn.prompt import Embeddings, array_of
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.stack import Stack


class State(NamedTuple):
    """The state that the earlier tokens of a text leave for the next ones.

    Attributes:
        cache: what the layers have cached, stacked; of keys and values, ``[l, s, n, k]``, one slot for each position.
            None before a text.
        drives: the drive of each edit at the last position.
    """

    cache: LayerCache | Stack | None
    drives: tuple[Float[Array, " e"], ...]


def initial_state(model: Decoder, edits: Sequence[Edit]) -> State:
    """The state before the first token of a text."""
    return State(None, tuple(jnp.zeros(edit.drive_features, model.dtype) for edit in edits))


class ForwardResult(NamedTuple):
    """The result of `forward` at some tokens.

    Attributes:
        output: the residual stream after the final norm.
        new: what the layers cache of these tokens, stacked.
        drives: the drive of each edit.
    """

    output: Float[Array, "t d"]
    new: LayerCache | Stack
    drives: tuple[Float[Array, "t e"], ...]


def forward(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    schedule: Schedule | Stack,
    state: State,
    edits: Sequence[Edit],
    *,
    start: Int[Array, ""] | int,
    first_new: Int[Array, ""] | int,
    stop: Int[Array, ""] | int | None = None,
) -> ForwardResult:
    """The edited model at the tokens that follow a `state`.

    Args:
        model: the decoder.
        x: the input embeddings of the tokens.
        schedule: that of all layers, stacked; its positions, and what is visible from them, are not read.
        state: what the earlier tokens have left.
        edits: edits from `check_edits`; those at one site are applied in this order.
        start: the position of the first token of `x`.
        first_new: the first position that an edit with ``where="new"`` applies to.
        stop: the position after the last token of the text, if it goes on: those of `x` from there on are padding.
    """
    depth = model.config.num_hidden_layers
    stream, positions = array_of(x), start + jnp.arange(x.shape[0])
    schedule = model.moved(schedule, positions)
    drives = tuple(edit.drive(stream, positions, before) for edit, before in zip(edits, state.drives, strict=True))

    def hooks(row: LayerRow) -> Hooks:
        return Hooks(edits=edits_of_layer(edits, drives, row, positions, first_new, depth))

    stream, new = model.scan(
        x,
        lambda row: Context(hooks=hooks(row[0]), cache=KVCache(row[1], start, stop)),
        (layer_rows(model.layout), state.cache),
        schedule=schedule,
        collect=lambda ctx: ctx.cache.new,
    )
    output = model.norm(stream, Context())
    for edit, drive in zip(edits, drives, strict=True):
        if edit.site == "final":
            output = edited_value(edit, "final", output, drive, positions, first_new)
    return ForwardResult(output, new, drives)


@checked
def edited(model: Decoder, x: Float[Embeddings, "t d"], edits: Sequence[Any], *, prompt: int | None = None) -> Array:
    """The residual stream after the final norm, ``[t, d]``, of `model` with `edits`, in one pass without a cache.

    Args:
        model: any decoder.
        x: the input embeddings.
        edits: the edits; those at one site are applied in this order.
        prompt: how many of the tokens are the prompt, for edits with ``where="new"``; all by default.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: a site that the model does not have.
        SteeringError: an object that is not an edit, an edit for a residual stream of another width, or one at a
            position past the last.
    """
    x = model.check_embeddings(x)
    tokens, checked = x.shape[0], check_edits(model, edits)
    for edit in checked:
        if isinstance(edit.where, tuple) and max(edit.where) >= tokens:
            raise SteeringError(f"Edit, where: expected positions in 0..{tokens - 1}; found {max(edit.where)}.")
    first_new = (tokens if prompt is None else prompt) - 1
    return full_pass(model, x, schedule_at(model, tokens), checked, first_new)


@jax.jit
def full_pass(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    schedule: Schedule | Stack,
    edits: tuple[Edit, ...],
    first_new: Int[Array, ""],
) -> Float[Array, "t d"]:
    """The output of `forward` for a full text."""
    return forward(model, x, schedule, initial_state(model, edits), edits, start=0, first_new=first_new).output


def schedule_at(model: Decoder, tokens: int) -> Schedule | Stack:
    """The schedule of a text of `tokens`, for `forward`. Its shape does not depend on `tokens`."""
    return model.schedule(tokens, jnp.arange(1))
