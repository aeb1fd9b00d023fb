"""JSON objects read strictly: a key that is given twice has no one meaning and is refused."""

import json
from pathlib import Path
from typing import Any

from jaxlin.errors import CheckpointError
from jaxlin.printable import quoted


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        ValueError: not JSON, not an object, or a key that is given twice; the message is one line.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__}, not an object")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: no such file, or not an object.
    """
    if path.exists() and not path.is_file():  # a pipe or a device would be read without end
        raise CheckpointError(f"{path}: expected a file; found another kind of thing.")
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: expected a {path.name}; found none.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: expected a JSON object; found text that is not one ({error})."[:300]) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quoted(max(keys, key=keys.count))} is given twice")
    return found
