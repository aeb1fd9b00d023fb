"""The schedule of a block: the settings that differ from layer to layer, and the positions of the tokens."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Schedule(NamedTuple):
    """An input of a block besides the stream and the context. That of a model has all layers stacked.

    Attributes:
        inv_freq: the rotary frequencies, radians a token; zeros rotate nothing.
        rope_scale: the factor of cosine and sine.
        window: how many tokens a query sees, itself included.
        positions: the position of each token.
    """

    inv_freq: Float[Array, " r"]
    rope_scale: Float[Array, ""]
    window: Int[Array, ""]
    positions: Int[Array, " t"]
