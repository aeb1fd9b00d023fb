"""What a `Tokenizer` is made of, whatever file it is from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlin.tokenizer.backend import Backend


@dataclass(frozen=True)
class Parts:
    """What a `Tokenizer` is made of.

    Attributes:
        backend: text to ids and back.
        source: where it is from, for messages.
        named: the special tokens that have a name, such as ``bos_token``.
        stop: the ids that end what a model writes, where a file names them.
        chat_template: the template of conversations as it is stored: a text, a list of named ones, or None.
    """

    backend: Backend
    source: str
    named: Mapping[str, str] = field(default_factory=dict)
    stop: tuple[int, ...] = ()
    chat_template: Any = None
