"""The files of a split GGUF checkpoint: their names, and the counts of files and tensors in each.

``NAME-00002-of-00003.gguf`` is the second of three. Each file has its index from 0 in ``split.no``, and the
numbers of files and tensors in ``split.count`` and ``split.tensors.count``; only the first has the model's metadata.
Source: ``gguf-split`` of https://github.com/ggml-org/llama.cpp.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlin.common.errors import CheckpointError
from jaxlin.common.printable import quoted

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

KEYS = ("split.no", "split.count", "split.tensors.count")
"""The metadata of a file about the split."""


def shard_names(name: str) -> list[str]:
    """The names of all files of the checkpoint that the file `name` belongs to; `name` alone if it is not split."""
    match = _NAME.fullmatch(name)
    if not match or not 1 <= int(match["number"]) <= int(match["count"]):
        return [name]
    return [f"{match['stem']}-{number:05}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


def shard_paths(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """All files of the checkpoint that `path`, a file with this `metadata`, belongs to.

    Raises:
        CheckpointError: its name and its metadata disagree, or a file is missing.
    """
    count = metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= 99999:
        raise CheckpointError(f"{path}, split.count: expected a number of files; found {_value(count)}.")
    if count in (0, 1):
        return [path]
    names = shard_names(path.name)
    if len(names) != count:
        raise CheckpointError(
            f"{path}, split.count: expected a name that ends in -0000N-of-{count:05}.gguf, by which the other files "
            f"are found; it is {path.name}. Give the file the name that it was published under."
        )
    paths = [path.with_name(name) for name in names]
    for shard in paths:
        if not shard.is_file():
            raise CheckpointError(
                f"{path}: expected {shard.name} beside it, one of {count} files of this checkpoint; found none. "
                "Download it into the same folder."
            )
    return paths


def check_shards(
    paths: Sequence[Path], metadata: Sequence[Mapping[str, Any]], names: Sequence[Collection[str]]
) -> None:
    """Refuse files that do not make up one checkpoint.

    Args:
        paths: all files, in order.
        metadata: the metadata of each file.
        names: the tensors of each file.

    Raises:
        CheckpointError: the counts of a file are wrong, or a tensor is in two files.
    """
    if len(paths) == 1:
        return
    expected = (len(paths), sum(map(len, names)))
    for place, (path, keys) in enumerate(zip(paths, metadata, strict=True)):
        for key, value in zip(KEYS, (place, *expected), strict=True):
            if type(keys.get(key)) is not int or keys[key] != value:
                raise CheckpointError(
                    f"{path}, {key}: expected {value}, as this is file {place + 1} of {expected[0]}, which have "
                    f"{expected[1]} tensors together; found {_value(keys.get(key))}. Download all files again."
                )
    places: dict[str, Path] = {}
    for path, tensors in zip(paths, names, strict=True):
        for name in tensors:
            if name in places:
                raise CheckpointError(
                    f"{path}: expected each tensor in one file; found {_value(name)} in {places[name].name} too."
                )
            places[name] = path


def _value(value: Any) -> str:
    return "none" if value is None else quoted(value)
