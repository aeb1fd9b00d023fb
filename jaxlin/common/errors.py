"""Errors meant for users: what was expected, what was found, what to do."""

from typing import TypeVar

from jaxlin.common.printable import message, quoted

Name = TypeVar("Name", bound=str)


class JaxlinError(ValueError):
    """The base of every error that a user can mend; the command prints its message without a traceback.

    Names and values of files are part of many messages: whatever they hold, a message is fit for a terminal.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(message(each) for each in args))


class CheckpointError(JaxlinError):
    """A checkpoint that cannot be had, is damaged, or is not what it says."""


class ConfigError(JaxlinError):
    """A config.json or GGUF metadata that jaxlin does not understand."""


class TokenizerError(JaxlinError):
    """A tokenizer that cannot be read or does not fit, or text that it cannot encode as asked."""


class UnembeddingError(JaxlinError):
    """Logits are asked of a model whose checkpoint has no unembedding."""


def one_of(what: str, found: str, known: tuple[Name, ...]) -> Name:
    """`found`, if it is one of the `known` names.

    Raises:
        JaxlinError: it is none of them.
    """
    for name in known:
        if found == name:
            return name
    raise JaxlinError(f"{what}: expected one of {', '.join(known)}; found {quoted(found)}.")
