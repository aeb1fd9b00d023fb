"""Which keys of a config.json change what a model computes, as measured with transformers.

``config_keys.json`` is written by ``python -m benchmarks.config_keys``: each key is put into the config.json of a tiny
model of each `model_type`, at values unlike its default, and transformers' logits are compared with the unchanged
model's.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("config_keys.json")


@dataclass(frozen=True)
class MeasuredKeys:
    """The measurements of one `model_type`, or of the text part of a wrapper.

    Attributes:
        stem: the beginning of the names of its classes in transformers; None for a text part.
        keys: the keys that were measured.
        changes: the keys of `keys` that change the logits at some value.
        same: for keys of `changes`, the values among true, false and null that change nothing.
    """

    stem: str | None
    keys: frozenset[str]
    changes: frozenset[str]
    same: Mapping[str, tuple[bool | None, ...]]

    def is_harmless(self, key: str, value: Any) -> bool:
        """Whether `key` at `value` is measured to change nothing."""
        if key in self.changes:
            return any(value is each for each in self.same.get(key, ()))
        return key in self.keys


@functools.cache
def measured_keys(row: str | None) -> MeasuredKeys:
    """The measurements of `row`: a `model_type`, or ``"gemma3.text_config"`` for the text part of a wrapper.

    For a model or text part that was not measured, these are the keys that change no measured model. For any other
    part, no key is.
    """
    table = _table()
    models, keys = table["models"], frozenset(table["keys"])
    if row is None or ("." in row and not row.endswith(".text_config")):
        return MeasuredKeys(None, frozenset(), frozenset(), {})
    if row not in models:
        return MeasuredKeys(None, keys.difference(*(each["changes"] for each in models.values())), frozenset(), {})
    entry = models[row]
    same = {key: tuple(values) for key, values in entry["same"].items()}
    return MeasuredKeys(entry.get("class"), keys, frozenset(entry["changes"]), same)


@functools.cache
def harmless_rope_keys(kind: str) -> frozenset[str]:
    """The keys of rope parameters that are measured to change nothing in a rope of this kind."""
    table = _table()
    return frozenset(table["rope_keys"]) - frozenset(table["ropes"].get(kind, table["rope_keys"]))


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(TABLE.read_text(encoding="utf-8"))
