"""What the tests of pages and notebooks share: text with numbers, programs of docs/scripts/, and names of jaxlin."""

import contextlib
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import jaxlin

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?")


def assert_same_text(printed: str, shown: str) -> None:
    """The same words, and the same numbers but for their last digits."""
    assert NUMBER.sub("_", printed).split() == NUMBER.sub("_", shown).split()
    for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        if "e" in theirs:  # a rounding error: of the same order
            assert float(ours) <= 10 * float(theirs)
        else:
            digits = len(theirs.partition(".")[2])
            assert abs(float(ours) - float(theirs)) <= 2 * 10.0**-digits + 5e-3 * abs(float(theirs)), (ours, theirs)


def resolved(name: str) -> Any:
    """What a dotted name names."""
    value: Any = jaxlin
    path = "jaxlin"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        with contextlib.suppress(ImportError):
            importlib.import_module(path)
        value = getattr(value, part)
    return value


def script(name: str) -> Any:
    """A program of docs/scripts/ as a module."""
    sys.path.insert(0, str(ROOT / "docs" / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)
