"""Errors for users; their messages say what was expected, what was found, and what to do."""

from typing import TypeVar

from jaxlin.common.printable import message, quoted

Name = TypeVar("Name", bound=str)


class JaxlinError(ValueError):
    """The base of every error that a user can fix; the command prints its message without a traceback.

    Many messages contain names and values from files; whatever these are, the message is safe to print.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(message(each) for each in args))


class CheckpointError(JaxlinError):
    """The checkpoint cannot be loaded, is damaged, or contradicts itself."""


class ConfigError(JaxlinError):
    """The config.json or the GGUF metadata says something that jaxlin does not support."""


class TokenizerError(JaxlinError):
    """The tokenizer is missing, cannot be read or does not fit the model, or cannot encode a text."""


class UnembeddingError(JaxlinError):
    """Logits are requested, but the checkpoint has no unembedding."""


def one_of(label: str, value: str, names: tuple[Name, ...]) -> Name:
    """`value`, if it is one of the `names`; `label` begins the message of the error.

    Raises:
        JaxlinError: it is none of them.
    """
    for name in names:
        if value == name:
            return name
    raise JaxlinError(f"{label}: expected one of {', '.join(names)}; found {quoted(value)}.")
