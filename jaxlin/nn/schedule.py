"""The schedule of a block: the settings that differ from layer to layer, and the positions of the tokens."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Schedule(NamedTuple):
    """An input of a block besides the stream and the context. That of a model has all layers stacked.

    Attributes:
        inv_freq: the rotary frequencies, radians a token; zeros rotate nothing.
        rope_scale: the factor of cosine and sine.
        positions: the position of each token.
        first_visible: the first key that the query of each token sees; the last is its own.
    """

    inv_freq: Float[Array, " r"]
    rope_scale: Float[Array, ""]
    positions: Int[Array, " t"]
    first_visible: Int[Array, " t"]
