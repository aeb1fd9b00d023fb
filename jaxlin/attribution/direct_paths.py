r"""The direct paths of a model: how what a layer adds reaches the output without passing another attention or MLP.

In most models all of them are the same: the stream carries what is added, times one number a layer, to the final norm.
Where layers mix several streams, a direct path is what remains of the frozen model if nothing that its layers add
depends on the stream. It is linear, and acts at each position alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.linearize.backward import transpose
from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.sites import ADDED


def direct_directions(
    model: Decoder, frozen: FrozenFactors, direction: Float[Array, "t d"], position: Any
) -> tuple[Float[Array, " d"], dict[str, Float[Array, "l d"]]]:
    """The directions that read, along the direct paths, the embeddings and what each layer adds.

    Args:
        model: the decoder.
        frozen: its frozen factors.
        direction: that of the stream after the last block, at all positions.
        position: the only position at which it is not zero.

    Returns:
        The direction of the embeddings at that position, and those of the values there of each kind of site in `ADDED`.
    """
    kinds = [kind for kind in ADDED if kind in model.sites]
    if (factors := model.direct_factors()) is not None:
        return factors[0] * direction[position], dict.fromkeys(kinds, factors[:, None] * direction[position][None])

    def paths(bare: Decoder, stream: Array, added: dict[str, Array]) -> Float[Array, "t d"]:
        def make_context(row: Any) -> Context:
            factors, values = row
            at_position = {kind: jnp.zeros_like(stream).at[position].set(value) for kind, value in values.items()}
            return Context(Replay(factors), Hooks(replacements=at_position))

        return bare.scan(stream, make_context, (frozen.layers, added))[0]

    rows = jax.ShapeDtypeStruct((model.config.num_hidden_layers, direction.shape[1]), direction.dtype)
    stream, added = transpose(paths, model, direction, dict.fromkeys(kinds, rows))(direction)
    return stream[position], added
