r"""Directions for steering, from pairs of prompts and from tokens."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.activations import SteeringError
from jaxlin.common.annotations import is_integer
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.linearize.frozen import record
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import Place, Site, place


@checked
def mean_difference(
    model: Decoder, towards: Sequence[Sequence[int]], away: Sequence[Sequence[int]], site: Site
) -> Float[Array, " d"]:
    r"""$\overline{h}_\text{towards} - \overline{h}_\text{away}$: a direction to `add`, from two groups of prompts.

    $h$ is the value at `site` at the last token of each prompt, and the bar is the mean over a group. Source: Rimsky et
    al., "Steering Llama 2 via Contrastive Activation Addition", 2024.

    Args:
        model: any decoder.
        towards: the token ids of prompts that have the property to steer towards.
        away: the token ids of prompts that do not have it.
        site: the site at which the values are read.

    Raises:
        PromptError: an empty prompt, or one longer than the model's context.
        SiteError: a site that the model does not have.
        SteeringError: no prompts, or a single prompt that is not in a list.
    """
    for prompts in (towards, away):
        if not len(prompts) or any(np.ndim(ids) != 1 for ids in prompts):
            raise SteeringError(
                "Mean difference: expected a list of prompts on both sides, each a list of token ids; "
                f"found {quoted(prompts)}."
            )
    source = place(site, model.config.num_hidden_layers, model.sites)

    def mean(prompts: Sequence[Sequence[int]]) -> Array:
        return jnp.mean(
            jnp.stack([_last_value(model, model.check_embeddings(model.embed(ids)), source) for ids in prompts]), axis=0
        )

    return mean(towards) - mean(away)


@functools.partial(jax.jit, static_argnames="source")
def _last_value(model: Decoder, x: Float[Embeddings, "t d"], source: Place) -> Float[Array, " d"]:
    return record(model, x, () if source.final else (source.kind,)).value_at(source)[-1]


@checked
def token_direction(model: Decoder, token: int) -> Float[Array, " d"]:
    """The row of the unembedding for `token`, whose product with an output is the logit: a direction to `add`.

    Raises:
        JaxlinError: not a token id. `tokenizer.to_single_token` gives the id of a word.
    """
    vocab = model.config.vocab_size
    if not is_integer(token) or not 0 <= token < vocab:
        raise JaxlinError(f"Token: expected an id in 0..{vocab - 1}; found {quoted(token)}.")
    return jax.grad(lambda h: model.unembed(h)[token])(jnp.zeros(model.config.hidden_size, model.dtype))
