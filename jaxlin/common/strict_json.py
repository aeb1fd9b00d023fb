"""Strict parsing of JSON objects: a key that is given twice is refused, because either value could be meant."""

import json
from typing import Any

from jaxlin.common.printable import quoted

MAX_DEPTH = 100
"""Objects and lists within each other. No file needs a tenth of it, and what walks a value recurs at each level."""


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        ValueError: the text is not JSON or not an object, is nested more than `MAX_DEPTH` deep, or gives a key twice;
            the message is one line.
    """
    too_deep = f"it is nested more than {MAX_DEPTH} deep"
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError(too_deep) from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        parts = [each.values() if isinstance(each, dict) else each for each in level]
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
        if not level:
            return value
    raise ValueError(too_deep)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quoted(max(keys, key=keys.count))} is given twice")
    return values
