"""The folder of a run: the settings that it was begun with, and its files, which are written atomically."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import check_regular_file, checksum, error_reason, write_atomically
from jaxlin.common.printable import json_text, quoted
from jaxlin.common.strict_json import parse_object

RUN_FILE = "run.json"
"""Holds the settings of the run."""

INDEX_SETTINGS = {"model", "dtype", "rule", "seed", "fingerprint"}
"""The settings that the index shows."""


class PaperError(JaxlinError):
    """The folder holds something else or cannot be written, or matplotlib is missing."""


def check_folder(path: Path, settings: dict[str, Any]) -> None:
    """Check, before any work is done, that `path` can take a run with `settings`, of which some may be missing.

    Raises:
        PaperError: `path` is a file, or a folder with other files or another run, or cannot be written.
    """
    existing = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise PaperError(f"{path}: expected a folder to write to; found a file, {existing}. Choose another folder.")
    if existing not in (path, path.absolute().parent):
        raise PaperError(f"{path}: expected a folder {path.parent} to make it in; found none. Make it first.")
    if existing == path:
        earlier = _settings_in(path)
        if earlier is not None and (differing := [name for name in settings if earlier.get(name) != settings[name]]):
            differences = "; ".join(
                f"{name} {quoted(settings[name])}, not {quoted(earlier.get(name))}" for name in differing
            )
            raise PaperError(
                f"{path}: expected the settings of the run that was begun there; found that this one has "
                f"{differences}. Choose another folder, or give the same settings to go on."
            )
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise PaperError(f"{path}: expected a folder that can be written; found {error.strerror}.") from error


def _settings_in(path: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder; None if the folder is empty but for temporary files."""
    try:
        names = sorted(each.name for each in path.iterdir())
    except OSError as error:
        raise PaperError(f"{path}: expected a folder that can be read; found {error_reason(error)}.") from error
    names = [name for name in names if not (name.startswith(".") and name.endswith(".tmp"))]
    if not names:
        return None
    settings = (_read_object(path / RUN_FILE) or {}).get("settings")
    if not isinstance(settings, dict):
        raise PaperError(
            f"{path}: expected an empty folder, or one of a run of jaxlin paper with its {RUN_FILE}; found other "
            f"files, {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}. Choose another folder."
        )
    return settings


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        check_regular_file(path)
        return parse_object(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _checksum_of(document: dict[str, Any]) -> str:
    return checksum(json.dumps(document, sort_keys=True).encode())


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: where it is.
        settings: those of the run.
    """

    path: Path
    settings: dict[str, Any]

    @classmethod
    def create(cls, path: Path, settings: dict[str, Any]) -> "RunFolder":
        """Make the folder, or go on with the run in it.

        Raises:
            PaperError: see `check_folder`.
        """
        check_folder(path, settings)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise PaperError(f"{path}: expected a folder that can be made; found {error_reason(error)}.") from error
        folder = cls(path, settings)
        folder._write_json(RUN_FILE, {"settings": settings})
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of a run that has been begun.

        Raises:
            PaperError: there is no run in it.
        """
        settings = _settings_in(path) if path.is_dir() else None
        if settings is None or not settings.keys() >= INDEX_SETTINGS:
            raise PaperError(f"{path}: expected the folder of a run, with its {RUN_FILE}; found none.")
        return cls(path, settings)

    def read_document(self, name: str) -> dict[str, Any] | None:
        """The content of ``NAME.json``; None if it is absent, damaged or of a run with other settings."""
        document = _read_object(self.path / f"{name}.json") or {}
        written = document.pop("checksum", None)
        intact = written == _checksum_of(document) and document.get("settings") == self.settings
        return document if intact else None

    def write_document(self, name: str, document: dict[str, Any]) -> None:
        """Write ``NAME.json`` with the settings of the run and a checksum."""
        document = {"settings": self.settings, **document}
        self._write_json(f"{name}.json", {**document, "checksum": _checksum_of(document)})

    def read_progress(self, name: str) -> list[dict[str, Any]]:
        """The entries that an interrupted run has left of the part `name`; none if there is nothing intact."""
        return (self.read_document(f"{name}.partial") or {}).get("entries", [])

    def write_progress(self, name: str, entries: list[dict[str, Any]]) -> None:
        """Write what there is so far of the part `name`, so that it can go on after an interruption."""
        self.write_document(f"{name}.partial", {"entries": entries})

    def remove_progress(self, name: str) -> None:
        """Remove what `write_progress` has written: the part is finished."""
        (self.path / f"{name}.partial.json").unlink(missing_ok=True)

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        write_atomically(self.path / name, lambda path: path.write_bytes(content), PaperError)

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        lines = (f"{json_text(key)}: {json_text(value)}" for key, value in values.items())  # a line for each entry
        self.write_file(name, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
