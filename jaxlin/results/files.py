"""Results in files: safetensors, with the arrays as tensors and the rest as JSON in its metadata.

Nothing in a file is run: a file names classes, and only those that are derived from `Result` are made.
"""

import functools
import importlib
import json
import pkgutil
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxlin.checkpoint.safetensors import SafetensorsFile
from jaxlin.common.arguments import checked
from jaxlin.common.errors import CheckpointError, JaxlinError
from jaxlin.common.files import path_exists, write_atomically
from jaxlin.common.printable import quoted
from jaxlin.common.strict_json import parse_object
from jaxlin.results.provenance import Provenance, note
from jaxlin.results.values import decoded, encoded

KEY = "jaxlin_result"
"""The key of the metadata of a file under which the JSON is."""

SUFFIX = ".safetensors"

CLASSES: dict[str, type] = {}
"""The classes of results, by name, of the modules that are imported."""


def write(result: Any, path: str | PathLike[str], tokens: Sequence[int]) -> None:
    """Write a result to a new file, with the texts of `tokens` besides those of its prompt.

    Raises:
        JaxlinError: another ending, a file that exists, or one that cannot be written.
    """
    file = checked_path(path)
    if path_exists(file):
        raise JaxlinError(f"Result: {file} is there already. Delete it or choose another path.")
    if not file.parent.is_dir():
        raise JaxlinError(f"Result: expected a directory {file.parent}; found none.")
    arrays: dict[str, np.ndarray] = {}
    content = {"value": encoded(result, arrays)}
    if result.provenance is not None:
        content["provenance"] = result.provenance.to_dict(tokens)
    text = json.dumps(content, allow_nan=False)
    write_atomically(file, lambda temporary: safetensors.numpy.save_file(arrays, temporary, {KEY: text}))


@checked
def load(path: str | PathLike[str]) -> Any:
    """The result in a file that `Result.save` wrote; it is of the class that was saved.

    Raises:
        CheckpointError: no such file, or one without a result.
        JaxlinError: a path with another ending.
    """
    file = checked_path(path)
    if not path_exists(file):
        raise CheckpointError(f"{file}: expected a result, as its method save writes; there is no such file.")
    _import_classes()
    opened = SafetensorsFile(file)
    try:
        with safetensors.safe_open(file, "numpy") as tensors:
            content = parse_object((tensors.metadata() or {})[KEY])
        names = set(opened.names())

        def read(name: str) -> np.ndarray:
            if name not in names:
                raise ValueError(f"no array {quoted(name)}, or one that is used twice")
            names.discard(name)
            return opened.read(name)

        result = decoded(content["value"], read, CLASSES)
        if type(result) not in CLASSES.values():
            raise ValueError("a value that is no result")
        note(result, None if "provenance" not in content else parse_provenance(content["provenance"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file}: expected a result, as its method save writes; found {error}."[:400]) from error
    return result


@functools.cache
def _import_classes() -> None:
    """Import what the packages of jaxlin offer: a class is in `CLASSES` once its module is imported."""
    root = __name__.partition(".")[0]  # by name, because the packages with classes of results stand above this one
    for module in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}."):
        package = importlib.import_module(module.name) if module.ispkg else None
        for name in getattr(package, "__all__", ()):
            getattr(package, name)


def checked_path(path: Any) -> Path:
    """`path`, if it is one and ends as results do.

    Raises:
        JaxlinError: it is not.
    """
    if not isinstance(path, str | PathLike) or "\0" in str(fspath(path)) or Path(path).suffix != SUFFIX:
        raise JaxlinError(f"Result: expected a path that ends in {SUFFIX}; found {quoted(path)}.")
    return Path(path)


def parse_provenance(values: Any) -> Provenance:
    """The provenance that `Provenance.to_dict` wrote.

    Raises:
        ValueError: a value of another type.
    """

    def text(name: str) -> str | None:
        value = values.get(name)
        if not isinstance(value, str | None):
            raise ValueError(f"{name} {quoted(value)} in its provenance")
        return value

    def mapping(name: str) -> dict[str, Any]:
        value = values.get(name, {})
        if not isinstance(value, dict):
            raise ValueError(f"{name} {quoted(value)} in its provenance")
        return value

    if not isinstance(values, dict):
        raise ValueError("a provenance that is no object")
    ids, texts, versions = values.get("ids"), mapping("texts"), mapping("versions")
    if ids is not None and not (isinstance(ids, list) and all(type(each) is int for each in ids)):
        raise ValueError("token ids that are no integers")
    if not all(isinstance(each, str) for each in (*texts.values(), *versions.values())):
        raise ValueError("texts that are no text")
    names = ("model", "revision", "files", "architecture", "dtype", "rule", "tokenizer")
    return Provenance(
        **{name: text(name) for name in names},
        ids=None if ids is None else tuple(ids),
        settings=mapping("settings"),
        versions=versions,
        texts={int(key): value for key, value in texts.items()},
    )
