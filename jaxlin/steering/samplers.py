"""How the next token is chosen from its logits."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.annotations import is_integer
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted


class SamplingError(JaxlinError):
    """An invalid temperature, top-k, top-p or number of tokens."""


class Sampling(NamedTuple):
    """How a token is drawn.

    Attributes:
        temperature: the logits are divided by it.
        top_k: only the `top_k` likeliest tokens are drawn, and those that are as likely as the last of them.
        top_p: of these, only the likeliest whose probabilities sum to `top_p`, including the token that reaches it.
    """

    temperature: Any
    top_k: Any
    top_p: Any


def make_sampling(vocab: int, temperature: Any, top_k: Any, top_p: Any) -> Sampling | None:
    """How tokens are drawn from a vocabulary; None at temperature 0, which takes the likeliest token.

    Raises:
        SamplingError: an invalid temperature, top-k or top-p.
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
    """Whether `number` is a finite number of Python, NumPy or JAX, and neither a string nor a bool."""
    if isinstance(number, str | bool):
        return False
    try:
        return math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        return False


def sample_token(sampling: Sampling | None, logits: Float[Array, " vocab"], key: Array) -> Int[Array, ""]:
    """A token drawn by `sampling`; if it is None, the likeliest token, and the first of equally likely ones."""
    if sampling is None:
        return jnp.argmax(logits)
    scaled = logits / sampling.temperature
    ordered = jnp.sort(scaled, descending=True)
    rank = jnp.arange(ordered.shape[0])
    probabilities = jax.nn.softmax(jnp.where(rank < sampling.top_k, ordered, -jnp.inf))
    before = jnp.cumsum(probabilities) - probabilities
    # A sum over a vocabulary may round to above one, which would cut the tail although top_p is 1.
    is_candidate = (rank < sampling.top_k) & ((before < sampling.top_p) | (sampling.top_p >= 1))
    threshold = jnp.min(jnp.where(is_candidate, ordered, jnp.inf))
    return jax.random.categorical(key, jnp.where(scaled >= threshold, scaled, -jnp.inf))
