"""The folder of a run: which run it is, and its files, each whole or not there."""

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import check_regular_file, error_reason, write_atomically
from jaxlin.common.printable import json_text, quoted
from jaxlin.common.strict_json import parse_object

RUN = "run.json"
"""Says which run a folder holds."""

SHOWN = {"model", "dtype", "rule", "seed", "fingerprint"}
"""The settings that the index shows."""


class PaperError(JaxlinError):
    """A folder that holds something else or cannot be written, or figures that cannot be drawn."""


def check_folder(path: Path, settings: dict[str, Any]) -> None:
    """Say so before any work if `path` cannot take a run with `settings`, as far as they are known.

    Raises:
        PaperError: a file; a folder that holds other files or another run; one that cannot be written.
    """
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise PaperError(f"{path}: expected a folder to write to; found a file, {there}. Choose another folder.")
    if there not in (path, path.absolute().parent):
        raise PaperError(f"{path}: expected a folder {path.parent} to make it in; found none. Make it first.")
    if there == path:
        found = _settings_in(path)
        if differing := [name for name in settings if found is not None and found.get(name) != settings[name]]:
            said = "; ".join(
                f"{name} {quoted(settings[name])}, not {quoted((found or {}).get(name))}" for name in differing
            )
            raise PaperError(
                f"{path}: expected the run that is begun there; found that this one has {said}. "
                "Choose another folder, or give the same settings to go on."
            )
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise PaperError(f"{path}: expected a folder that can be written; found {error.strerror}.") from error


def _settings_in(path: Path) -> dict[str, Any] | None:
    """The settings of the run that a folder holds; None where it is empty."""
    try:
        files = sorted(entry.name for entry in path.iterdir() if not _passing(entry.name))
    except OSError as error:
        raise PaperError(f"{path}: expected a folder that can be read; found {error_reason(error)}.") from error
    if not files:
        return None
    settings = (_read(path / RUN) or {}).get("settings")
    if not isinstance(settings, dict):
        raise PaperError(
            f"{path}: expected an empty folder, or one of a run of jaxlin paper with its {RUN}; found other files, "
            f"{', '.join(files[:3])}{', ...' if len(files) > 3 else ''}. Choose another folder."
        )
    return settings


def _passing(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        check_regular_file(path)
        return parse_object(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def as_json(data: dict[str, Any]) -> bytes:
    """JSON with a line for each entry."""
    lines = (f"{json_text(key)}: {json_text(value)}" for key, value in data.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def checksum_of(value: Any) -> str:
    """What a value that is read again is held against."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder that is taken for a run.

    Attributes:
        path: where it is.
        settings: of the run.
    """

    path: Path
    settings: dict[str, Any]

    @classmethod
    def taken(cls, path: Path, settings: dict[str, Any]) -> "Folder":
        """Make the folder, or go on with the run that it holds.

        Raises:
            PaperError: see `check_folder`.
        """
        check_folder(path, settings)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise PaperError(f"{path}: expected a folder that can be made; found {error_reason(error)}.") from error
        taken = cls(path, settings)
        taken.write(RUN, as_json({"settings": settings}))
        return taken

    @classmethod
    def opened(cls, path: Path) -> "Folder":
        """The folder of a run that has been begun.

        Raises:
            PaperError: it holds none.
        """
        settings = _settings_in(path) if path.is_dir() else None
        if settings is None or not settings.keys() >= SHOWN:
            raise PaperError(f"{path}: expected the folder of a run, with its {RUN}; found none.")
        return cls(path, settings)

    def finished(self, name: str) -> dict[str, Any] | None:
        """The JSON of a part of this run; None if it is not there as it was written, and is to be computed again."""
        document = _read(self.path / f"{name}.json") or {}
        checksum = document.pop("checksum", None)
        as_written = checksum == checksum_of(document) and document["settings"] == self.settings
        return document if as_written else None

    def finish(self, name: str, document: dict[str, Any]) -> None:
        """Write the JSON of a part, with a checksum."""
        self.write(f"{name}.json", as_json({**document, "checksum": checksum_of(document)}))

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        write_atomically(self.path / name, lambda beside: beside.write_bytes(content), PaperError)


@dataclass(frozen=True)
class Journal:
    """What a part has so far, a line each, so that it can go on after an interruption; see `Folder`.

    Attributes:
        path: of the file, which is there only while the part is unfinished.
    """

    path: Path

    def entries(self) -> list[dict[str, Any]]:
        """What is there, up to the first line that is not as it was written."""
        entries: list[dict[str, Any]] = []
        with contextlib.suppress(OSError, ValueError, KeyError):
            check_regular_file(self.path)
            for text in self.path.read_text("utf-8").splitlines():
                line = parse_object(text)
                if line["checksum"] != checksum_of(line["entry"]):
                    break
                entries.append(line["entry"])
        return entries

    def keep(self, entries: list[dict[str, Any]]) -> None:
        """Replace what is there."""
        lines = [json.dumps({"entry": entry, "checksum": checksum_of(entry)}) for entry in entries]
        write_atomically(self.path, lambda beside: beside.write_text("\n".join(lines) + "\n", "utf-8"), PaperError)

    def clear(self) -> None:
        """Remove it: the part is finished."""
        self.path.unlink(missing_ok=True)
