r"""The contributions of attention heads by source position: $p_{hts}\,(g_h \cdot v_s)$ in every layer.

$p$ is the frozen attention pattern, $t$ the position of the logit, $v$ the values, and $g_h$ the gradient of the target
in the output of head $h$ at $t$, before the output projection. Summed over $s$, this is the head's contribution.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.arguments import checked
from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings, checked_embeddings
from jaxlin.nn.sites import InnerSite
from jaxlin.nn.stack import Stack, padded


@checked
def contributions_by_source(
    model: Decoder,
    frozen: FrozenFactors,
    x: Float[Embeddings, "t d"],
    head_gradients: Float[Array, "l h k"] | Stack,
    position: int | Int[Array, ""],
) -> Float[Array, "l h t"]:
    """The contribution of each head at `position` from each position, by one pass of the frozen model at its own input.

    It is NaN where a layer has fewer heads than another.

    Args:
        model: the decoder.
        frozen: the frozen factors at `x`.
        x: the input embeddings.
        head_gradients: the gradients of the target in each head, through the output of its own layer alone.
        position: the position of the logit.

    Raises:
        PromptError: `x` does not have the shape ``[t, d]``.
    """
    # A frozen model reads no token ids, so that embeddings without them serve too.
    x = checked_embeddings(x, model.config.hidden_size, model.dtype, reads_ids=False)

    def make_context(layer: Any) -> Context:
        factors, layer_gradients = layer

        # Query heads are grouped by the key-value head that they share, so that its values are not repeated.
        def dots(values: Float[Array, "t n k"]) -> Float[Array, "h t"]:
            n, k = values.shape[1:]
            grouped = layer_gradients.reshape(n, -1, k)
            return jnp.einsum("ngk,snk->ngs", grouped, values, precision=HIGHEST).reshape(-1, values.shape[0])

        return Context(Replay(factors), Hooks(readers={InnerSite.VALUES: dots}))

    def collect(ctx: Context) -> Float[Array, "h t"]:
        return ctx.hooks.values[InnerSite.PATTERN].row(position) * ctx.hooks.values[InnerSite.VALUES]

    return padded(model.scan(x, make_context, (frozen.layers, head_gradients), collect=collect)[1])
