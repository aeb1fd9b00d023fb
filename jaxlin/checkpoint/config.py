"""`ConfigReader`: a config.json read strictly. Every key is taken, or measured to be harmless, or refused by name."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jaxlin.checkpoint.key_table import measured_keys
from jaxlin.common.errors import ConfigError
from jaxlin.common.printable import quoted

T = TypeVar("T")
_REQUIRED: Any = object()

HARMLESS = {
    "return_dict": "the type of what transformers returns; false is an error there",
    "use_return_dict": "a copy of `return_dict` that older versions wrote",
}
"""Keys that change no number, although transformers 5 refuses some of their values. All other keys are measured: see
`jaxlin.checkpoint.key_table`."""

CLASS_SUFFIXES = (
    "Config",
    "Model",
    "PreTrainedModel",
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForSequenceClassification",
)
CLASS_SUFFIXES += ("ForTokenClassification", "ForQuestionAnswering")
"""The endings of the names of a family's classes in transformers."""


def is_number(value: Any) -> bool:
    """Whether `value` is a number other than a bool, and finite as a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def how_to_ignore(keys: Sequence[str]) -> str:
    """Advice for a user whose file is refused because of `keys` that they know to be harmless."""
    names = ", ".join(f'"{key}"' for key in keys)[:200]
    return f"If you know better, load the model as if it were absent: jaxlin.load(..., ignore_config_keys=[{names}])."


def without_keys(config: Mapping[str, Any], keys: Sequence[str], source: str) -> dict[str, Any]:
    """`config` without `keys`, each of which is a key or a path such as ``"text_config.use_mrope"``.

    Raises:
        ConfigError: the config does not have one of them.
    """
    if isinstance(keys, str):
        raise ConfigError(f"ignore_config_keys: expected a list of keys; found the text {quoted(keys)}.")
    remaining = dict(config)
    for path in keys:
        part, key = remaining, path
        while key not in part and "." in key:
            before, _, key = key.partition(".")
            if not isinstance(part.get(before), dict):
                break
            part[before] = part = dict(part[before])
        if key not in part:
            raise ConfigError(f"{source}, ignore_config_keys: expected keys that the file has; found {quoted(path)}.")
        del part[key]
    return remaining


class ConfigReader:
    """The keys of one config.json, each taken with its type; `finish` refuses the keys that were not taken.

    Args:
        config: the JSON object.
        source: its origin, for messages.
        row: the row of the table of measured keys; None for the row of its `model_type`.
        path: the path of a part within the file, with a dot at its end.
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
        """The value of `key`, or `default` if it is absent; null means None."""
        return self.take(key, kind, None) if key in self._config else default

    def positive_or_none(self, key: str, default: int | None) -> int | None:
        """The value of `key`, a positive integer, or `default` if it is absent; null means None."""
        return self.positive(key, None) if key in self._config else default

    def peek(self, key: str) -> Any:
        """The value of `key`, without taking it."""
        return self._config.get(key)

    def path_of(self, key: str) -> str:
        """The path of `key` in the file."""
        return self._path + key

    def override(self, key: str, value: Any) -> None:
        """Replace the value of `key`."""
        self._config[key] = value

    def positive(self, key: str, default: Any = _REQUIRED, *, maximum: int = 2**31 - 1) -> Any:
        """The value of `key`, an integer in 1..`maximum`; `default` where it is absent or null."""
        value = self.take(key, int, default)
        if value is not None and not 1 <= value <= maximum:
            raise self.error(key, f"an integer in 1..{maximum}", quoted(value))
        return value

    def at_least_zero(self, key: str, default: int) -> int:
        """The value of `key`, an integer of at least 0; `default` if it is absent, 0 if it is null."""
        value = self.optional(key, int, default) or 0
        if value < 0:
            raise self.error(key, "an integer of at least 0", quoted(value))
        return value

    def above_zero(self, key: str, value: Any) -> Any:
        """`value`, which was taken under `key`, if it is above 0 or None.

        Raises:
            ConfigError: it is 0 or below.
        """
        if value is not None and value <= 0:
            raise self.error(key, "a number above 0", quoted(value))
        return value

    def part(self, key: str) -> "ConfigReader":
        """The object under `key`, read as strictly: `finish` of this reader calls that of the part."""
        path = f"{self._path}{key}."
        part = ConfigReader(self.take(key, dict), f"{self.source}, {key}", row=f"{self._row}.{key}", path=path)
        self._parts.append(part)
        return part

    def leave_out(self, *keys: str) -> None:
        """Take `keys` that change nothing here, such as those of a part of the model that is not loaded."""
        self._taken.update(keys)

    def expect(self, key: str, value: Any) -> None:
        """Refuse the config unless `key` is absent, null or `value`."""
        self._taken.add(key)
        config_value = self._config.get(key)
        if config_value is not None and config_value != value:
            raise self.error(key, f"{quoted(value)}, the only value this port computes", quoted(config_value))

    def finish(self) -> None:
        """Refuse every key that was not taken and is not measured to be harmless.

        Raises:
            ConfigError: there are such keys.
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
                f"changes the logits of transformers' {self._row} in a way that jaxlin does not compute. "
                f"{self._how_to_ignore(changing)}"
            )
        if unknown := [key for key in unread if self._config[key] is not None]:
            raise ConfigError(
                f"{self.source}: expected only keys that jaxlin knows; found {self._quoted(unknown)}. No config of "
                f"transformers has it, and it could change the output. {self._how_to_ignore(unknown)}"
            )

    def unread(self) -> list[str]:
        """The paths of the keys that were not taken, and that `finish` accepts as measured to change nothing."""
        own = [self._path + key for key in self._config if key not in self._taken and self._config[key] is not None]
        return sorted([*own, *(key for part in self._parts for key in part.unread())])

    def _refuse_other_code(self, stem: str | None) -> None:
        """Refuse an `auto_map` that names classes other than the family's: such a checkpoint runs code of its own."""
        auto_map = self._config.get("auto_map")
        if stem is None or not isinstance(auto_map, dict):
            return
        family = {(stem + suffix).lower() for suffix in CLASS_SUFFIXES}
        for auto, path in auto_map.items():
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

    def error(self, key: str, expected: str, value: str) -> ConfigError:
        """An error about `key`."""
        return ConfigError(f"{self.source}, key {quoted(key)}: expected {expected}; found {value}.")
