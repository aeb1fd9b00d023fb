"""Checks that the model and the tokenizer were passed in their places, before anything is computed."""

from typing import Any

import jax
import jax.core

from jaxlin.common.errors import JaxlinError
from jaxlin.nn.decoder import Decoder


def check_model(model: Any) -> None:
    """Refuse a first argument that is not a model.

    Raises:
        JaxlinError: `model` is something else.
    """
    if not isinstance(model, Decoder):
        raise JaxlinError(
            f"Model: expected a model, as jaxlin.load gives, as the first argument; found a {type(model).__name__}."
        )


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse anything but a tokenizer, or None where there is none.

    Raises:
        JaxlinError: `tokenizer` is something else.
    """
    if tokenizer is not None and not (hasattr(tokenizer, "encode") and hasattr(tokenizer, "decode")):
        raise JaxlinError(
            "Tokenizer: expected a tokenizer, as jaxlin.load gives beside the model, as the second argument; "
            f"found a {type(tokenizer).__name__}."
        )


def check_not_traced(name: str, *values: Any) -> None:
    """Refuse arguments within a transform of JAX, for a function that returns NumPy arrays or runs a loop in Python.

    Args:
        name: the first word of the message.
        values: the arguments, pytrees.

    Raises:
        JaxlinError: one of them is traced.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
        raise JaxlinError(
            f"{name}: expected numbers; found values that are traced, within jax.jit, jax.vmap or jax.grad. It runs "
            "several compiled programs: call it outside of them, and once for each prompt."
        )
