"""How the next token is chosen from its logits."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.sites import is_integer


class SamplingError(JaxlinError):
    """A temperature, top-k or top-p that says nothing."""


class Sampling(NamedTuple):
    """How a token is drawn.

    Attributes:
        temperature: what logits are divided by.
        top_k: only the `top_k` likeliest tokens, and those as likely as the last of them.
        top_p: of these, only the likeliest that together hold this probability: the one that reaches it is in.
    """

    temperature: Any
    top_k: Any
    top_p: Any


def sampling_of(vocab: int, temperature: Any, top_k: Any, top_p: Any) -> Sampling | None:
    """How tokens of a vocabulary are drawn; None for the likeliest.

    Raises:
        SamplingError: no such temperature, top-k or top-p.
    """
    if not _is_real(temperature) or temperature < 0:
        raise SamplingError(f"Temperature: expected 0 (the likeliest token) or more; found {quoted(temperature)}.")
    if top_k is not None and (not is_integer(top_k) or top_k < 1):
        raise SamplingError(f"top_k: expected an integer of 1 or more; found {quoted(top_k)}.")
    if top_p is not None and not (_is_real(top_p) and 0 < top_p <= 1):
        raise SamplingError(f"top_p: expected a probability, above 0 and at most 1; found {quoted(top_p)}.")
    if temperature == 0:
        return None
    return Sampling(temperature, min(top_k or vocab, vocab), 1.0 if top_p is None else top_p)


def _is_real(number: Any) -> bool:
    """Whether `number` is a finite number of Python, NumPy or JAX, and neither a text nor a truth value."""
    if isinstance(number, str | bool):
        return False
    try:
        return math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        return False


def chosen(sampling: Sampling | None, logits: Float[Array, " vocab"], key: Array) -> Int[Array, ""]:
    """The likeliest token, the first among equals; or one drawn as `sampling` says."""
    if sampling is None:
        return jnp.argmax(logits)
    scaled = logits / sampling.temperature
    ordered = jnp.sort(scaled, descending=True)
    rank = jnp.arange(ordered.shape[0])
    probabilities = jax.nn.softmax(jnp.where(rank < sampling.top_k, ordered, -jnp.inf))
    before = jnp.cumsum(probabilities) - probabilities
    # A sum over a vocabulary may round to above one, and then would cut the tail of a draw that asks for all.
    kept = (rank < sampling.top_k) & ((before < sampling.top_p) | (sampling.top_p >= 1))
    least = jnp.min(jnp.where(kept, ordered, jnp.inf))
    return jax.random.categorical(key, jnp.where(scaled >= least, scaled, -jnp.inf))
