"""JSON objects read strictly: a key that is given twice has no one meaning and is refused."""

import json
from pathlib import Path
from typing import Any

from jaxlin.common.errors import CheckpointError
from jaxlin.common.printable import quoted

DEEPEST = 100
"""Objects and lists within each other: no file needs a tenth, and what walks or prints a value recurs once a level."""


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        ValueError: not JSON, not an object, nested more than `DEEPEST` deep, or a key that is given twice; the message
            is one line.
    """
    too_deep = f"it is nested more than {DEEPEST} deep"
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(too_deep) from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object")
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        parts = [each.values() if isinstance(each, dict) else each for each in level]
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
        if not level:
            return value
    raise ValueError(too_deep)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: no such file, or not an object.
    """
    check_file(path)
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: expected a {path.name}; found none.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: expected a JSON object; found text that is not one ({error}).") from error


def check_file(path: Path) -> None:
    """Refuse a pipe, a device or a folder: a pipe would be waited for, and a device read without end.

    Raises:
        CheckpointError: it is there and no file.
    """
    if exists(path) and not path.is_file():
        raise CheckpointError(f"{path}: expected a file; found another kind of thing.")


def exists(path: Path) -> bool:
    """Whether there is anything at `path`; nothing is where a name is longer than the system allows, or none at all."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quoted(max(keys, key=keys.count))} is given twice")
    return found
