r"""Directions to steer along, from prompts and from tokens."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.linearize.frozen import record
from jaxlin.nn.arguments import check_model
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sites import Place, Site, is_integer, place
from jaxlin.steering.edits import SteeringError


def mean_difference(
    model: Decoder, towards: Sequence[Sequence[int]], away: Sequence[Sequence[int]], site: Site
) -> Float[Array, " d"]:
    r"""$\overline{h}_\text{towards} - \overline{h}_\text{away}$: a direction to `add`, from prompts that differ by it.

    $h$ is the value at `site` at the last token of each prompt. Source: Rimsky et al., "Steering Llama 2 via
    Contrastive Activation Addition", 2024.

    Args:
        model: any decoder.
        towards: token ids of prompts that have what is wanted.
        away: those that have not.
        site: where the values are read.

    Raises:
        PromptError: an empty prompt, or one longer than the model's context.
        SiteError: a site that the model does not have.
        SteeringError: no prompts, or one alone that is in no list.
    """
    check_model(model)
    for side in (towards, away):
        if not len(side) or any(np.ndim(ids) != 1 for ids in side):
            raise SteeringError(
                "Mean difference: expected a list of prompts on both sides, each a list of token ids; "
                f"found {quoted(side)}."
            )
    spot = place(site, model.config.num_hidden_layers, model.sites)

    def mean(side: Sequence[Sequence[int]]) -> Array:
        return jnp.mean(jnp.stack([_last_value(model, model.embed(ids), spot) for ids in side]), axis=0)

    return mean(towards) - mean(away)


@functools.partial(jax.jit, static_argnames="spot")
def _last_value(model: Decoder, x: Float[Array, "t d"], spot: Place) -> Float[Array, " d"]:
    return record(model, x, () if spot.final else (spot.kind,)).at(spot)[-1]


def token_direction(model: Decoder, token: int) -> Float[Array, " d"]:
    """The row of the unembedding that reads the logit of `token`: the plainest direction to `add` for a word.

    Raises:
        JaxlinError: no token id. `tokenizer.to_single_token` gives that of a word.
    """
    check_model(model)
    vocab = model.config.vocab_size
    if not is_integer(token) or not 0 <= token < vocab:
        raise JaxlinError(f"Token: expected an id in 0..{vocab - 1}; found {quoted(token)}.")
    return jax.grad(lambda h: model.unembed(h)[token])(jnp.zeros(model.config.hidden_size, model.dtype))
