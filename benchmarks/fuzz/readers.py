"""The readers that are held against hostile inputs, and how each is given one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzz.draws import Draw

Write = Callable[[Draw, Path], Callable[[], Any]]
"""Writes an input, drawn with the first, into the folder that is the second; returns what reads it."""


class Reader(NamedTuple):
    """A way in.

    Attributes:
        weight: how often it comes in a round.
        write: see `Write`.
    """

    weight: int
    write: Write


READERS: dict[str, Reader] = {}
"""By name. The modules of the formats fill it; `all_readers` imports them."""


def reader(weight: int) -> Callable[[Write], Write]:
    """Add a function to `READERS`, under its own name."""

    def add(write: Write) -> Write:
        READERS[write.__name__] = Reader(weight, write)
        return write

    return add


def all_readers() -> dict[str, Reader]:
    """Every reader. A module with a new format is imported here."""
    from benchmarks.fuzz import configs, folders, ggufs, lenses, resumed, tokenizers, vocabularies

    del configs, folders, ggufs, lenses, resumed, tokenizers, vocabularies
    return READERS
