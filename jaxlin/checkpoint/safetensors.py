"""A directory with config.json and safetensors: one file, or the shards of an index."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the bfloat16 that safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlin.errors import CheckpointError

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class SafetensorsFile:
    """One file: its header is checked by the safetensors library, its tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="numpy")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: expected a whole safetensors file; found one that cannot be read ({error}). "
                "It is truncated or damaged: download it again."
            ) from error

    def names(self) -> list[str]:
        """The tensors there are."""
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The format's name of a tensor's dtype."""
        return self._file.get_slice(name).get_dtype()

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        return self._file.get_tensor(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor; the others are not read."""
        return self._file.get_slice(name)[start:stop]


class Folder:
    """A directory with config.json and its weights, in one safetensors file or in the shards of an index."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self.config = read_json(path / "config.json")
        known = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        self.tokenizer_files = {name: path / name for name in known if (path / name).is_file()}
        self._files: dict[str, SafetensorsFile] = {}
        for file, named in self._weights(path).items():
            opened = SafetensorsFile(path / file)
            if missing := sorted((named or set()) - set(opened.names())):
                raise CheckpointError(
                    f"{opened.path}: expected tensor {missing[0]}, which the index names; found none."
                )
            if twice := sorted(set(opened.names()) & self._files.keys()):
                raise CheckpointError(
                    f"{opened.path}: expected each tensor in one shard; found {twice[0]} in another too."
                )
            self._files.update(dict.fromkeys(opened.names(), opened))

    @staticmethod
    def _weights(path: Path) -> dict[str, set[str] | None]:
        """The files to open, and the tensors that an index says are in each."""
        index, single = path / "model.safetensors.index.json", path / "model.safetensors"
        if not index.exists():
            if single.is_file():
                return {single.name: None}
            pickles = sorted(found.name for pattern in PICKLES for found in path.glob(pattern))
            if pickles:
                raise CheckpointError(
                    f"{path}: expected model.safetensors; found only {pickles[0]}, a pickle, which could run code "
                    "and is never opened. Convert it to safetensors, or take a revision that has them."
                )
            raise CheckpointError(f"{path}: expected model.safetensors or model.safetensors.index.json; found neither.")
        shards: dict[str, set[str] | None] = {}
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: expected an object under 'weight_map'; found {type(weight_map).__name__}.")
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or "\\" in file or file in ("", ".", ".."):
                raise CheckpointError(
                    f"{index}, {tensor}: expected the name of a file in the same folder; found {file!r}."
                )
            if not (path / file).is_file():
                raise CheckpointError(f"{index}: expected the shard {file} beside it; found none. Download it again.")
            named = shards.setdefault(file, set())
            assert named is not None
            named.add(tensor)
        return shards

    def names(self) -> frozenset[str]:
        """The tensors there are."""
        return frozenset(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._files[name].shape(name)

    def dtype(self, name: str) -> str:
        """The format's name of a tensor's dtype."""
        return self._files[name].dtype(name)

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        return self._files[name].read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor; the others are not read."""
        return self._files[name].read_rows(name, start, stop)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: no such file, or not an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: expected a {path.name}; found none.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON; found text that is not ({error})."[:300]) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object; found {type(found).__name__}.")
    return found
