"""What turns text into ids: a tokenizer in this process, or in one of its own if its file is of no ordinary kind."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.process import MEMORY, Process
from jaxlin.tokenizer.shapes import is_ordinary
from jaxlin.tokenizer.worker import Tokens

Result = TypeVar("Result")


@runtime_checkable
class Backend(Protocol):
    """What a tokenizer does. Each raises TokenizerError where it fails."""

    def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a text, with those that the post-processor puts around it if `special`."""
        ...

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id as the vocabulary spells it."""
        ...

    def size(self) -> int:
        """One more than the largest id."""
        ...

    def to_json(self) -> str:
        """The same as the text of a tokenizer.json."""
        ...


def backend_of(text: str, spec: dict[str, Any], added: list[dict[str, Any]], source: str) -> Backend:
    """The tokenizer of a tokenizer.json.

    Args:
        text: the text of the file.
        spec: the same as an object.
        added: tokens that stand beside it, each as the arguments of `tokenizers.AddedToken`.
        source: its name, for messages.

    Raises:
        TokenizerError: what is no tokenizer, or one that fails on ordinary texts.
    """
    if is_ordinary(spec, added):
        return Local(tried(f"{source}: expected a tokenizer", Tokens.read, text, added), source)
    return Remote(text, added, source)


def tried(expected: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function of the `tokenizers` library gives.

    Raises:
        TokenizerError: any error of the library, and a panic of it, which is no `Exception`.
    """
    try:
        return function(*arguments)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{expected}; found {str(error)[:300]}.") from error


class Local:
    """A tokenizer in this process."""

    def __init__(self, tokens: Tokens, source: str) -> None:
        self.tokens = tokens
        self._source = source

    def encode(self, text: str, special: bool) -> list[int]:  # noqa: D102
        what = f"{self._source}: expected tokens for each part of {quoted(text, 100)}"
        return tried(what, self.tokens.encode, text, special)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:  # noqa: D102
        what = f"{self._source}: expected ids to decode"
        return tried(what, self.tokens.decode, ids, skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:  # noqa: D102
        return tried(f"{self._source}: expected a token", self.tokens.token_to_id, token)

    def id_to_token(self, token_id: int) -> str | None:  # noqa: D102
        return tried(f"{self._source}: expected an id", self.tokens.id_to_token, token_id)

    def size(self) -> int:  # noqa: D102
        return self.tokens.size()

    def to_json(self) -> str:  # noqa: D102
        return self.tokens.backend.to_str()


class Remote:
    """A tokenizer in a process of its own, which tries it on some texts first."""

    def __init__(self, text: str, added: list[dict[str, Any]], source: str) -> None:
        self._text = text
        self._process = Process(source, MEMORY + 60 * len(text))
        self._size: int = self._process.ask("a tokenizer", "load", text, added, length=len(text))

    def encode(self, text: str, special: bool) -> list[int]:  # noqa: D102
        expected = f"tokens for each part of {quoted(text, 100)}"
        return self._process.ask(expected, "encode", text, special, length=len(text))

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:  # noqa: D102
        return self._process.ask("ids to decode", "decode", ids, skip_special_tokens, length=len(ids))

    def token_to_id(self, token: str) -> int | None:  # noqa: D102
        return self._process.ask("a token", "token_to_id", token)

    def id_to_token(self, token_id: int) -> str | None:  # noqa: D102
        return self._process.ask("an id", "id_to_token", token_id)

    def size(self) -> int:  # noqa: D102
        return self._size

    def to_json(self) -> str:  # noqa: D102
        return self._text
