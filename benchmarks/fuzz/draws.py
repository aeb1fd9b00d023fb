"""Random parts of inputs: hostile values, JSON text that no writer would write, and changes of both."""

import copy
import json
import math
from random import Random
from typing import Any

EDGES = [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 64, 100, 255, 256, 1000, 4096, 2**15, 2**16, 2**24, 2**29, 2**31 - 1]
EDGES += [2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**309, 10**4000]
FLOATS = [0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 1e-9, 1e-45, 5e-324, 1e9, 3.5e38, 1e300, 1.8e308, -1.0, -1e300, math.pi]
FLOATS += [math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "a", "0", "1", "-1", "1e9", "None", "true", "default", "linear", "yarn", "longrope", "silu", "gelu"]
TEXTS += [
    "\x1b[31mred",
    "\x1b]8;;http://a\x07",
    "\x9b2J",
    "\u202e\u2066",
    "\u2028",
    "\ud800",
    "\udcff\udc00",
    "\0",
    "\r",
]
TEXTS += ["..", "../a", "/etc/hostname", "a/b", "a\\b", "~", "a" * 300, "é" * 200, "a" * 70_000, "\U0001f600\u200d"]
TEXTS += ["[/INST]", "[bold]", "[link=a]b", "{0!r}", "%n%s", "$A", "$B:1", "<|a|>", "</script>", "NaN", "🌉"]


class Verbatim(str):
    """Text that is put into JSON without quotes."""

    __slots__ = ()


class Draw(Random):
    """Random choices from one seed."""

    def rarely(self, share: float = 0.1) -> bool:
        """True with probability `share`."""
        return self.random() < share

    def integer(self) -> int:
        """An integer at or beside a limit, such as a power of two."""
        return self.choice((1, 1, 1, -1)) * self.choice(EDGES) + self.choice((0, 0, 0, 1, -1))

    def axis(self) -> int:
        """The length of an axis, sometimes longer than any file."""
        return abs(self.choice([0, 1, 2, 3, 4, 8, 32, 64, self.integer()]))

    def value(self, depth: int = 0) -> Any:
        """Any JSON value, or text that is none."""
        kinds = [self.integer, lambda: self.choice(FLOATS), lambda: self.choice(TEXTS), self._odd]
        kinds += [] if depth > 2 else [lambda: self._list(depth), lambda: self._object(depth)]
        return self.choice(kinds)()

    def _odd(self) -> Any:
        deep = self.choice([3, 90, 110, 400, 950, 5000, 200_000])
        nested = [Verbatim("[" * deep + "]" * deep), Verbatim('{"a":' * deep + "0" + "}" * deep)]
        long = [Verbatim("9" * 5000), Verbatim("1e999999"), Verbatim("[" + "0," * 30_000 + "0]"), Verbatim("-0.0e-9")]
        return self.choice([None, True, False, [], {}, [[]], [None], *nested, *long])

    def _list(self, depth: int) -> list[Any]:
        if self.rarely(0.5):
            return [self.choice(FLOATS[:8])] * self.choice([1, 2, 8, 16, 64, 4096])
        return [self.value(depth + 1) for _ in range(self.randint(0, 4))]

    def _object(self, depth: int) -> dict[str, Any]:
        return {self.choice(TEXTS): self.value(depth + 1) for _ in range(self.randint(0, 3))}

    def bytes_like(self, data: bytes) -> bytes:
        """`data` with a few changes: bits, numbers of one to eight bytes, parts cut, put in or put elsewhere."""
        out = bytearray(data)
        for _ in range(self.choice([1, 1, 2, 4, 8])):
            start, size = self.randrange(len(out) + 1), self.choice([1, 2, 4, 8])
            part = out[self.randrange(len(out) + 1) :][: self.choice([1, 8, 64])]
            change = self.randrange(7)
            if change == 0 and start < len(out):
                out[start] ^= 1 << self.randrange(8)
            elif change == 1:
                out[start : start + size] = (self.integer() % 256**size).to_bytes(size, self.choice(["little", "big"]))
            elif change == 2:
                del out[start : start + self.choice([1, 4, 32])]
            elif change == 3:
                out[start:start] = self.randbytes(self.choice([1, 4, 32]))
            elif change == 4:
                out[start:start] = part * self.choice([1, 3])
            elif change == 5:
                out[start : start + len(part)] = part
            elif self.rarely(0.3):
                del out[start:]
        return bytes(out)

    def json_like(self, value: Any, keys: list[str] | None = None, max_changes: int = 3) -> Any:
        """A copy of `value`, a JSON value, with one to `max_changes` changes.

        Args:
            value: the value to change.
            keys: keys that mean something to the reader, to put into objects.
            max_changes: the largest number of changes.
        """
        value = copy.deepcopy(value)
        for _ in range(self.randint(1, max_changes)):
            places = list(_places(value))
            if not places or self.rarely(0.01):
                return self.value()
            holder, key = self.choice(places)
            other, other_key = self.choice(places)
            change = self.randrange(8)
            if change <= 2:
                holder[key] = self.value()
            elif change == 3:
                del holder[key]
            elif change == 4 and isinstance(holder, dict):
                holder[self.choice([*(keys or []), *TEXTS])] = self.value() if self.rarely(0.7) else holder[key]
            elif change == 5:
                holder[key] = copy.deepcopy(other[other_key])
            elif change == 6:
                holder[key] = self.choice([[holder[key]], {"a": holder[key]}, str(holder[key])[:100], None])
            elif isinstance(holder[key], int | float) and math.isfinite(holder[key]):
                holder[key] = self.choice(
                    [-holder[key], holder[key] + 1, holder[key] - 1, holder[key] * 2, holder[key] / 2]
                )
        return value

    def text_of(self, value: Any) -> bytes:
        """`value` as JSON text in UTF-8, at times with a repeated key or with bytes that are no text."""
        text = json_text(value).encode("utf-8", "surrogatepass")
        if self.rarely(0.03) and text.startswith(b"{") and len(text) > 2:
            text = text[:-1] + b"," + text[1:]
        return self.bytes_like(text) if self.rarely(0.03) else text


def json_text(value: Any) -> str:
    """`value` as JSON, with `Verbatim` text unquoted."""
    if isinstance(value, Verbatim):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {json_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(json_text, value)) + "]"
    if type(value) is int and abs(value) >= 10**4000:  # more digits than Python writes
        return ("-" if value < 0 else "") + "9" * 4500
    return json.dumps(value)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every part of a JSON value, as its container and its key; of a long list only the first few."""
    places: list[tuple[Any, Any]] = []
    holders = [value]
    while holders:
        holder = holders.pop()
        keys = (
            list(holder)
            if isinstance(holder, dict)
            else range(min(len(holder), 20))
            if isinstance(holder, list)
            else ()
        )
        places += [(holder, key) for key in keys]
        holders += [holder[key] for key in keys]
    return places
