"""The registry of readers that are run on hostile inputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzz.draws import Draw

Write = Callable[[Draw, Path], Callable[[], Any]]
"""Takes a source of random choices and a folder, writes an input into the folder, and returns a call that reads it."""


class Reader(NamedTuple):
    """A reader of files from strangers.

    Attributes:
        weight: how many inputs a round has for it.
        write: writes an input, see `Write`.
    """

    weight: int
    write: Write


READERS: dict[str, Reader] = {}
"""All readers by name. The modules of the formats add theirs; `all_readers` imports these modules."""


def reader(weight: int) -> Callable[[Write], Write]:
    """A decorator that adds a function to `READERS` under its own name."""

    def add(write: Write) -> Write:
        READERS[write.__name__] = Reader(weight, write)
        return write

    return add


def all_readers() -> dict[str, Reader]:
    """All readers. Import a module with a new format here."""
    from benchmarks.fuzz import configs, folders, ggufs, lenses, results, resumed, tokenizers, vocabularies

    del configs, folders, ggufs, lenses, results, resumed, tokenizers, vocabularies
    return READERS
