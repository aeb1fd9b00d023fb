r"""Rotary frequencies, in radians a token.

Each kind of rope is a frozen value whose `frequencies(tokens)` are $\omega$ (``[r]``, float64) and the factor of cosine
and sine. `jaxlin.porting.rope_parameters` makes them from the rope parameters of a config.json.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


def plain_frequencies(dim: int, theta: float) -> Float64[np.ndarray, " r"]:
    r"""$\theta^{-2i/n}$ for $i = 0, \dots, n/2 - 1$: the frequencies of $n$ = `dim` features that nothing scales."""
    return 1.0 / theta ** (np.arange(0, dim, 2) / dim)


@dataclass(frozen=True)
class Rope:
    """Frequencies that do not depend on the length of the prompt.

    Attributes:
        inv_freq: the frequencies.
        scale: the factor of cosine and sine.
    """

    inv_freq: tuple[float, ...]
    scale: float = 1.0

    def frequencies(self, tokens: int) -> tuple[Float64[np.ndarray, " r"], float]:
        """The frequencies for a prompt of `tokens`, and the factor of cosine and sine."""
        return np.array(self.inv_freq), self.scale


@dataclass(frozen=True)
class DynamicRope(Rope):
    """NTK-aware scaling: past the trained length the base grows with the prompt."""

    theta: float = 1e4
    factor: float = 1.0
    max_position_embeddings: int = 0

    def frequencies(self, tokens: int) -> tuple[Float64[np.ndarray, " r"], float]:
        """As `Rope.frequencies`, with the base of this length."""
        dim = 2 * len(self.inv_freq)
        stretch = self.factor * max(tokens / self.max_position_embeddings, 1) - (self.factor - 1)
        return plain_frequencies(dim, self.theta * math.pow(stretch, dim / (dim - 2))), self.scale


@dataclass(frozen=True)
class LongRope(Rope):
    """Two tables: a prompt longer than the trained length takes the long one, at all its positions."""

    long_inv_freq: tuple[float, ...] = ()
    original_max_position_embeddings: float = 0

    def frequencies(self, tokens: int) -> tuple[Float64[np.ndarray, " r"], float]:
        """As `Rope.frequencies`, from the table of this length."""
        is_long = tokens > self.original_max_position_embeddings
        return np.array(self.long_inv_freq if is_long else self.inv_freq), self.scale


def no_rope(dim: int) -> Rope:
    """Frequencies of zero: nothing is rotated."""
    return Rope((0.0,) * (dim // 2))
