"""Text and values of strangers, made fit to print: names in files, tokens and values of a config are anyone's.

A terminal obeys escape codes, a right-to-left override turns the line around it, a lone surrogate cannot be encoded,
and the `repr` of a value can be as long as its file. What is printed goes through here, so that none of them reaches a
person.
"""

import json
import logging
import math
import re
import reprlib
from typing import Any

LONGEST_VALUE = 200
"""Characters of a value within a message."""

LONGEST_MESSAGE = 2000
"""Characters of a whole message."""

LARGEST_INTEGER = 2**200
"""The size up to which the digits of an integer are shown: beyond it they say nothing, and Python may refuse to."""


def printable(text: str, keep: str = "\n") -> str:
    r"""`text` with every character that is not to be seen written as its escape, such as ``\x1b`` or ``\u202e``.

    Letters, marks, numbers, punctuation, symbols and the space stay as they are, and so does what `keep` lists. Given
    what it gave, it changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def quoted(value: Any, longest: int = LONGEST_VALUE) -> str:
    """`value` as Python writes it, in one line of at most `longest` characters.

    Only what is shown is written out: a list of a million entries or one nested a thousand deep costs no more than a
    short one.
    """
    try:
        text = _SHORT.repr(value)
    except Exception:  # a `__repr__` can raise anything, and one that is nested too deeply a RecursionError
        text = f"<{type(value).__name__}>"
    return shortened(printable(text, keep=""), longest)


def shortened(text: str, longest: int) -> str:
    """`text`, in at most `longest` characters: the middle of a longer one gives way to an ellipsis.

    The end stays, because what to do is said there.
    """
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]}...{text[len(text) - end :]}"


def message(value: object) -> str:
    """The message of an error, whatever names and values were put into it."""
    return shortened(printable(shortened(str(value), LONGEST_MESSAGE)), LONGEST_MESSAGE)


def json_text(value: Any, indent: int | None = None) -> str:
    r"""`value` as JSON in which every character that is not to be seen is written as its escape, such as ``\u202e``.

    Raises:
        ValueError: a number that is not finite, which JSON cannot write; see `finite`.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    # Outside of its strings JSON has only printable characters, and the line breaks of `indent`.
    return re.sub(r"[^\n -~]", lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], text)


def finite(value: Any) -> Any:
    """`value` with None in the place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _fit(record: logging.LogRecord) -> bool:
    """Make the message of a record fit to print: names of files and tensors are in it."""
    record.msg, record.args = message(record.getMessage()), None
    return True


logging.getLogger("jaxlin").addFilter(_fit)


class _Short(reprlib.Repr):
    """Writes the beginning of a value and an ellipsis for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 8
        self.maxstring = self.maxother = LONGEST_VALUE

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) <= LARGEST_INTEGER:
            return str(x)
        return f"<{'negative ' if x < 0 else ''}integer of {x.bit_length()} bits>"

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring - 60]!r}...{x[-40:]!r}"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r}..."


_SHORT = _Short()
