"""Printing text and values of strangers: names in files, tokens, and the values of a config can be anything.

A terminal obeys escape codes, a right-to-left override turns the line around, a lone surrogate cannot be encoded, and
the `repr` of a value can be as long as its file. Whatever is printed goes through here first.
"""

import json
import logging
import math
import re
import reprlib
from typing import Any

MAX_VALUE_LENGTH = 200
"""The length of a value in a message, in characters."""

MAX_MESSAGE_LENGTH = 2000
"""The length of a message, in characters."""

MAX_INTEGER = 2**200
"""Digits of larger integers are not shown: they say nothing, and Python may refuse to write them."""


def printable(text: str, keep: str = "\n") -> str:
    r"""`text` with every invisible character written as its escape, such as ``\x1b`` or ``\u202e``.

    Letters, marks, numbers, punctuation, symbols, spaces and the characters in `keep` are unchanged. Applied twice, the
    function does the same as once.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def quoted(value: Any, length: int = MAX_VALUE_LENGTH) -> str:
    """The `repr` of a value, in one line of at most `length` characters.

    Only the part that is shown is computed: a list of a million entries, or one nested a thousand deep, takes no longer
    than a short one.
    """
    try:
        text = _SHORT_REPR.repr(value)
    except Exception:  # a `__repr__` can raise anything, such as a RecursionError
        text = f"<{type(value).__name__}>"
    return shortened(printable(text, keep=""), length)


def kind_of(value: Any) -> str:
    """The class of a value with its article, as ``an Add`` or ``a Tokenizer``."""
    return with_article(type(value).__name__)


def with_article(noun: str) -> str:
    """A name with the article that it is read with: letters of abbreviations are spelled, as in ``an SVD``."""
    is_spelled = noun[:2].isupper()
    is_vowel = noun[0] in "AEFHILMNORSX" if is_spelled else re.match("(?i)[aeio]|u(?!ni|se)", noun) is not None
    return f"an {noun}" if is_vowel else f"a {noun}"


def shortened(text: str, length: int) -> str:
    """`text` in at most `length` characters, with an ellipsis in the middle; the end of a message says what to do."""
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 3]}...{text[len(text) - end :]}"


def message(value: object) -> str:
    """The text of a value as a message that is safe to print, whatever names and values are in it."""
    return shortened(printable(shortened(str(value), MAX_MESSAGE_LENGTH)), MAX_MESSAGE_LENGTH)


def json_text(value: Any, indent: int | None = None) -> str:
    r"""`value` as JSON in which every invisible character is written as its escape, such as ``\u202e``.

    Raises:
        ValueError: a number is not finite, so that JSON cannot write it; see `finite`.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    # Outside its strings, JSON has only printable characters and the line breaks of `indent`.
    return re.sub(r"[^\n -~]", lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], text)


def finite(value: Any, digits: int = 17) -> Any:
    """Plain values with None for every float that is not finite, and the others rounded to so many digits."""
    if isinstance(value, dict):
        return {key: finite(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each, digits) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _make_printable(record: logging.LogRecord) -> bool:
    """A filter that makes a log message safe to print: names of files and tensors are in it."""
    record.msg, record.args = message(record.getMessage()), None
    return True


logging.getLogger("jaxlin").addFilter(_make_printable)


class _ShortRepr(reprlib.Repr):
    """Writes the beginning of a value, and an ellipsis for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 8
        self.maxstring = self.maxother = MAX_VALUE_LENGTH

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) <= MAX_INTEGER:
            return str(x)
        return f"<{'negative ' if x < 0 else ''}integer of {x.bit_length()} bits>"

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring - 60]!r}...{x[-40:]!r}"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r}..."


_SHORT_REPR = _ShortRepr()
