"""Backends turn text into ids: in this process, or in one of their own if the tokenizer's file is not ordinary."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.ordinary import is_ordinary
from jaxlin.tokenizer.process import WORKER_MEMORY, WorkerProcess
from jaxlin.tokenizer.worker import Tokens

Result = TypeVar("Result")


@runtime_checkable
class Backend(Protocol):
    """The operations of a tokenizer. Each raises TokenizerError if it fails."""

    def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a text; if `special`, with the special tokens that the post-processor puts around it."""
        ...

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, as the vocabulary spells it."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, as the vocabulary spells it."""
        ...

    def size(self) -> int:
        """One more than the largest id."""
        ...

    def to_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        ...


@dataclass(frozen=True)
class TokenizerParts:
    """The parts of a `Tokenizer`, whatever file they are from.

    Attributes:
        backend: text to ids and back.
        source: the file, for messages.
        named: the special tokens that have a name, such as ``bos_token``.
        stop: the ids that end what a model writes, if a file names them.
        chat_template: the chat template as it is stored: a text, a list of named ones, or None.
    """

    backend: Backend
    source: str
    named: Mapping[str, str] = field(default_factory=dict)
    stop: tuple[int, ...] = ()
    chat_template: Any = None


def make_backend(text: str, spec: dict[str, Any], added: list[dict[str, Any]], source: str) -> Backend:
    """The backend for a tokenizer.json.

    Args:
        text: the text of the file.
        spec: the object in the file.
        added: tokens from the files beside it, each as the arguments of `tokenizers.AddedToken`.
        source: the name of the file, for messages.

    Raises:
        TokenizerError: the file is not a tokenizer, or the tokenizer fails on ordinary texts.
    """
    if is_ordinary(spec, added):
        return LocalBackend(call_library(f"{source}: expected a tokenizer", Tokens.read, text, added), source)
    return RemoteBackend(text, added, source)


def call_library(expected: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of the `tokenizers` library.

    Raises:
        TokenizerError: the function fails or panics; a panic is no `Exception`. The message begins with `expected`.
    """
    try:
        return function(*arguments)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{expected}; found {str(error)[:300]}.") from error


class LocalBackend:
    """A tokenizer in this process."""

    def __init__(self, tokens: Tokens, source: str) -> None:
        self.tokens = tokens
        self._source = source

    def encode(self, text: str, special: bool) -> list[int]:  # noqa: D102
        expected = f"{self._source}: expected tokens for each part of {quoted(text, 100)}"
        return call_library(expected, self.tokens.encode, text, special)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:  # noqa: D102
        expected = f"{self._source}: expected ids to decode"
        return call_library(expected, self.tokens.decode, ids, skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:  # noqa: D102
        return call_library(f"{self._source}: expected a token", self.tokens.token_to_id, token)

    def id_to_token(self, token_id: int) -> str | None:  # noqa: D102
        return call_library(f"{self._source}: expected an id", self.tokens.id_to_token, token_id)

    def size(self) -> int:  # noqa: D102
        return self.tokens.size()

    def to_json(self) -> str:  # noqa: D102
        return self.tokens.backend.to_str()


class RemoteBackend:
    """A tokenizer in a process of its own, which tries it on some texts first."""

    def __init__(self, text: str, added: list[dict[str, Any]], source: str) -> None:
        self._text = text
        self._process = WorkerProcess(source, WORKER_MEMORY + 60 * len(text))
        self._size: int = self._process.request("a tokenizer", "load", text, added, length=len(text))

    def encode(self, text: str, special: bool) -> list[int]:  # noqa: D102
        expected = f"tokens for each part of {quoted(text, 100)}"
        return self._process.request(expected, "encode", text, special, length=len(text))

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:  # noqa: D102
        return self._process.request("ids to decode", "decode", ids, skip_special_tokens, length=len(ids))

    def token_to_id(self, token: str) -> int | None:  # noqa: D102
        return self._process.request("a token", "token_to_id", token)

    def id_to_token(self, token_id: int) -> str | None:  # noqa: D102
        return self._process.request("an id", "id_to_token", token_id)

    def size(self) -> int:  # noqa: D102
        return self._size

    def to_json(self) -> str:  # noqa: D102
        return self._text
