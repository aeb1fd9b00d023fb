"""Arguments that are in each other's place: said before they fail deep within."""

from typing import Any

from jaxlin.common.errors import JaxlinError
from jaxlin.nn.decoder import Decoder


def check_model(model: Any) -> None:
    """Refuse a first argument that is no model.

    Raises:
        JaxlinError: saying what it is.
    """
    if not isinstance(model, Decoder):
        raise JaxlinError(
            f"Model: expected a model, as jaxlin.load gives, as the first argument; found a {type(model).__name__}."
        )


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer in the place of one; None stands for none.

    Raises:
        JaxlinError: saying what it is.
    """
    if tokenizer is not None and not (hasattr(tokenizer, "encode") and hasattr(tokenizer, "decode")):
        raise JaxlinError(
            "Tokenizer: expected a tokenizer, as jaxlin.load gives beside the model, as the second argument; "
            f"found a {type(tokenizer).__name__}."
        )
