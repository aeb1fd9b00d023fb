"""Checks that the model and the tokenizer were passed in their places, before anything is computed."""

from typing import Any

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
