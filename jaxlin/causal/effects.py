"""Parts of all causal checks: runs of the ordinary model with one value edited, and rank correlations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.common.arguments import check_not_traced
from jaxlin.linearize.targets import read_target
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import position_in

BATCH_SIZE = 8
"""How many prompts are passed through the model together."""


def prompt_up_to(model: Decoder, x: Float[Embeddings, "t d"], position: int) -> Float[Embeddings, "p d"]:
    """The prompt `x` up to `position` and with it; later tokens have no influence there.

    Raises:
        JaxlinError: `model` is not a decoder, or within a transform of JAX.
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: no such position.
    """
    check_not_traced("Causal check", model, x)
    x = model.check_embeddings(x)
    return x[: position_in(x.shape[0], position) + 1]


def read_edited(
    model: Decoder,
    x: Float[Embeddings, "p d"],
    target: Array,
    site: str,
    layer: Any,
    edit: Callable[[Array, Array], Array],
    indices: Int[Array, " n"],
) -> Float[Array, " n"]:
    """The value of `target` at the last position of the ordinary model, after each of several edits in turn.

    The edit of each of `indices` puts ``edit(index, value)`` in the place of the value at `site` in layer `layer`.
    """

    def read(index: Array) -> Array:
        def make_context(each: Array) -> Context:
            hooks = Hooks(edits={site: lambda value: jnp.where(each == layer, edit(index, value), value)})
            return Context(hooks=hooks)

        stream, _ = model.scan(x, make_context, jnp.arange(model.config.num_hidden_layers))
        return read_target(model, model.norm(stream, Context())[-1], target, Context())

    return jax.lax.map(read, indices, batch_size=BATCH_SIZE)


def spearman(a: Float[np.ndarray, "*n"], b: Float[np.ndarray, "*n"]) -> float:
    """Spearman's rank correlation, with mean ranks for ties; NaN if `a` or `b` is constant or has under two entries.

    Entries that are NaN in either do not count.
    """
    # Imported here because scipy.stats takes longer to import than most of jaxlin, which seldom needs it.
    from scipy.stats import spearmanr

    counted = ~(np.isnan(a) | np.isnan(b))
    a, b = a[counted], b[counted]
    if min(len(np.unique(a)), len(np.unique(b))) < 2:
        return float("nan")  # which SciPy gives too, with a warning
    result: Any = spearmanr(a, b)
    return float(result.statistic)
