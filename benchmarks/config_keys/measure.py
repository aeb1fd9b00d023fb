"""Tries every key with every value, many keys at once: if nothing changes, none of them matters."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.config_keys.keys import known_keys, known_rope_keys, values_of
from benchmarks.config_keys.reference import Reference, parse

GROUP = 800
"""The number of keys that are tried together."""


@dataclass
class Row:
    """The measured keys of one place: a `model_type`, the text half of a wrapper, or a kind of rope.

    Attributes:
        changes: keys that change the logits at some value, or that transformers then refuses.
        same: for those that are no field of the config class, which of true, false and null change nothing in any
            context.
    """

    changes: set[str] = field(default_factory=set)
    same: dict[str, list[Any]] = field(default_factory=dict)


def measure(reference: Reference, places: Mapping[tuple[str, ...], str], rows: dict[str, Row]) -> None:
    """Measure one context at its `places`, and add the outcome to `rows`."""
    for path, name in places.items():
        row = rows.setdefault(name, Row())
        own = part_at(reference.config, path)
        for edits in rounds(name, own):
            ahead = [(key, value) for key, value in edits if key not in row.changes]
            for start in range(0, len(ahead), GROUP):
                row.changes |= {key for key, _ in culprits(reference, path, ahead[start : start + GROUP])}
        for key in sorted(row.changes - fields_of(reference.config, path)):
            row.same[key] = [
                value
                for value in row.same.get(key, [True, False, None])
                if reference.outcome(edited(reference.config, path, {key: value})) == "same"
            ]


def rounds(name: str, own: Mapping[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    """Every key with its first value unlike the one it has, then with its second, and so on, null last if absent."""
    keys = {key: [] for key in known_rope_keys()} if name.startswith("rope.") else known_keys()
    tried = {}
    for key, defaults in keys.items():
        if isinstance(own.get(key), dict) and key.endswith("_config"):
            continue  # without what stands there, a part would have its default size, of billions of parameters
        values = [value for value in values_of(key, defaults) if key not in own or value != own[key]]
        tried[key] = values if key in own else [*values, None]
    for i in range(max(map(len, tried.values()))):
        yield [(key, values[i]) for key, values in tried.items() if i < len(values)]


def culprits(reference: Reference, path: tuple[str, ...], edits: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The edits that change something, found by halving. A null that transformers refuses counts as an absent key."""
    if not edits:
        return []
    outcome = reference.outcome(edited(reference.config, path, dict(edits)))
    if outcome == "same":
        return []
    if len(edits) == 1:
        return [] if outcome == "refused" and edits[0][1] is None else list(edits)
    middle = len(edits) // 2
    return culprits(reference, path, edits[:middle]) + culprits(reference, path, edits[middle:])


def fields_of(config: Mapping[str, Any], path: tuple[str, ...]) -> set[str]:
    """The fields of the config class at `path`: of the wrapper or its text half."""
    parsed = parse(config)
    for key in path:
        parsed = getattr(parsed, key)
        if isinstance(parsed, dict):
            return set()
    return {each.name for each in dataclasses.fields(parsed)}


def edited(config: Mapping[str, Any], path: tuple[str, ...], edits: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` with `edits` applied to the object at `path`."""
    config = copy.deepcopy(dict(config))
    part_at(config, path).update(copy.deepcopy(dict(edits)))
    return config


def part_at(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The object at `path`."""
    for key in path:
        config = config[key]
    return config
