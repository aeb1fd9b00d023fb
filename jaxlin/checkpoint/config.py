"""`ConfigReader`: a config.json read strictly. Every key is consumed, measured to be harmless, or refused by name."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jaxlin.checkpoint.key_table import measured_keys
from jaxlin.common.errors import ConfigError
from jaxlin.common.printable import quoted

T = TypeVar("T")
_REQUIRED: Any = object()

HARMLESS = {
    "return_dict": "says in what transformers returns logits; false is an error there",
    "use_return_dict": "a copy of `return_dict` that older versions wrote",
}
"""Keys that change no number, though transformers 5 refuses some of their values. All others are measured: see
`jaxlin.checkpoint.key_table`."""

CLASSES = ("Config", "Model", "PreTrainedModel", "ForCausalLM", "ForConditionalGeneration", "ForSequenceClassification")
CLASSES += ("ForTokenClassification", "ForQuestionAnswering")
"""How the names of a family's classes end in transformers."""


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, as a float can hold it, and no truth value."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def how_to_ignore(keys: Sequence[str]) -> str:
    """What a user can do about keys that are refused and that they know to be harmless."""
    names = ", ".join(f'"{key}"' for key in keys)[:200]
    return f"If you know better, load the model as if it were absent: jaxlin.load(..., ignore_config_keys=[{names}])."


def without_keys(config: Mapping[str, Any], keys: Sequence[str], source: str) -> dict[str, Any]:
    """`config` without `keys`, each a key or a path such as ``"text_config.use_mrope"``.

    Raises:
        ConfigError: one that is not there.
    """
    if isinstance(keys, str):
        raise ConfigError(f"ignore_config_keys: expected a list of keys; found the text {quoted(keys)}.")
    left = dict(config)
    for path in keys:
        part, key = left, path
        while key not in part and "." in key:
            before, _, key = key.partition(".")
            if not isinstance(part.get(before), dict):
                break
            part[before] = part = dict(part[before])
        if key not in part:
            raise ConfigError(f"{source}, ignore_config_keys: expected keys that the file has; found {quoted(path)}.")
        del part[key]
    return left


class ConfigReader:
    """The keys of one config.json, each taken with its type; `finish` refuses what nobody took.

    Args:
        config: the JSON object.
        source: where it came from, for messages.
        row: the row of the table of measured keys; the one of its `model_type` unless given.
        path: where it stands in the file, for a part.
    """

    def __init__(self, config: Mapping[str, Any], source: str, *, row: str | None = None, path: str = "") -> None:
        self.source = source
        self._config = dict(config)
        self._row = config.get("model_type") if row is None else row
        self._path = path
        self._taken: set[str] = {"model_type"}
        self._parts: list[ConfigReader] = []

    def take(self, key: str, kind: type[T], default: Any = _REQUIRED) -> T:
        """The value of `key`, of type `kind`; `default` where it is absent or null.

        Raises:
            ConfigError: a missing key without default, or a value of another type.
        """
        self._taken.add(key)
        value = self._config.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(key, f"a value of type {kind.__name__}", "none")
            return default
        if kind is float and is_number(value):
            value = float(value)
        if type(value) is not kind or (kind is float and not is_number(value)):
            raise self.error(key, f"a value of type {kind.__name__}", quoted(value))
        return value

    def optional(self, key: str, kind: type[T], default: T | None) -> T | None:
        """The value of `key`, where null says "none" and only an absent key means the default."""
        return self.take(key, kind, None) if key in self._config else default

    def positive_or_none(self, key: str, default: int | None) -> int | None:
        """The value of `key`, a positive integer, where null says "none" and only an absent key means the default."""
        return self.positive(key, None) if key in self._config else default

    def peek(self, key: str) -> Any:
        """What the config says under `key`, without taking it."""
        return self._config.get(key)

    def path_of(self, key: str) -> str:
        """Where `key` stands in the file."""
        return self._path + key

    def override(self, key: str, value: Any) -> None:
        """Put `value` in the place of what the config says under `key`."""
        self._config[key] = value

    def positive(self, key: str, default: Any = _REQUIRED, *, most: int = 2**31 - 1) -> Any:
        """The value of `key`, an integer in 1..`most`; `default` where it is absent or null."""
        value = self.take(key, int, default)
        if value is not None and not 1 <= value <= most:
            raise self.error(key, f"an integer in 1..{most}", quoted(value))
        return value

    def above_zero(self, key: str, value: Any) -> Any:
        """`value`, which was taken under `key`, if it is above 0 or none."""
        if value is not None and value <= 0:
            raise self.error(key, "a number above 0", quoted(value))
        return value

    def part(self, key: str) -> "ConfigReader":
        """The object under `key`, read as strictly: its own `finish` is called with this one's."""
        path = f"{self._path}{key}."
        part = ConfigReader(self.take(key, dict), f"{self.source}, {key}", row=f"{self._row}.{key}", path=path)
        self._parts.append(part)
        return part

    def leave_out(self, *keys: str) -> None:
        """Say that `keys` belong to a part of the model that is not loaded."""
        self._taken.update(keys)

    def expect(self, key: str, value: Any) -> None:
        """Refuse the config unless `key` is absent, null or `value`."""
        self._taken.add(key)
        found = self._config.get(key)
        if found is not None and found != value:
            raise self.error(key, f"{quoted(value)}, the only value this port computes", quoted(found))

    def finish(self) -> None:
        """Refuse every key that was not taken and is not measured to be harmless.

        Raises:
            ConfigError: naming the keys.
        """
        for part in self._parts:
            part.finish()
        measured = measured_keys(self._row)
        self._refuse_other_code(measured.stem)
        unread = sorted(self._config.keys() - self._taken - HARMLESS.keys())
        unread = [key for key in unread if not measured.is_harmless(key, self._config[key])]
        if changing := [key for key in unread if key in measured.changes]:
            raise ConfigError(
                f"{self.source}: expected only keys that jaxlin understands; found {self._quoted(changing)}. It "
                f"changes the logits of transformers' {self._row}, and jaxlin does not compute what it asks for. "
                f"{self._how_to_ignore(changing)}"
            )
        if unknown := [key for key in unread if self._config[key] is not None]:
            raise ConfigError(
                f"{self.source}: expected only keys that jaxlin knows; found {self._quoted(unknown)}. No config of "
                f"transformers has it, and it could change the output. {self._how_to_ignore(unknown)}"
            )

    def unread(self) -> list[str]:
        """The keys that nobody took, as paths: what `finish` lets pass, as measured to change nothing."""
        own = [self._path + key for key in self._config if key not in self._taken and self._config[key] is not None]
        return sorted([*own, *(key for part in self._parts for key in part.unread())])

    def _refuse_other_code(self, stem: str | None) -> None:
        """Refuse an `auto_map` that names classes other than the family's: the weights are run by code of their own."""
        given = self._config.get("auto_map")
        if stem is None or not isinstance(given, dict):
            return
        family = {(stem + end).lower() for end in CLASSES}
        for auto, path in given.items():
            name = path.rpartition(".")[2] if isinstance(path, str) else ""
            if auto.startswith(("AutoConfig", "AutoModel")) and name.lower() not in family:
                raise self.error(
                    "auto_map",
                    f"a class of {stem}, the family of model_type {quoted(self._row)}",
                    quoted(path) + ", code of the checkpoint's own, which may compute something else. "
                    "jaxlin runs no such code. " + self._how_to_ignore(["auto_map"]),
                )

    def _quoted(self, keys: Sequence[str]) -> str:
        return ", ".join(f"{quoted(key)} = {quoted(self._config[key])}"[:120] for key in keys)

    def _how_to_ignore(self, keys: Sequence[str]) -> str:
        return how_to_ignore([self.path_of(key) for key in keys])

    def error(self, key: str, expected: str, found: str) -> ConfigError:
        """An error about `key`."""
        return ConfigError(f"{self.source}, key {quoted(key)}: expected {expected}; found {found}.")
