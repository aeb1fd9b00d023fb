"""A directory with config.json and safetensors: one file, or the shards of an index."""

import logging
from pathlib import Path

import numpy as np

from jaxlin.checkpoint.safetensors import SafetensorsFile
from jaxlin.common.errors import CheckpointError
from jaxlin.common.files import path_exists, read_json
from jaxlin.common.printable import quoted

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
"""Weights whose format runs code when it is read."""

LOG = logging.getLogger("jaxlin")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""The files beside config.json that say how text becomes ids and ids text."""


class CheckpointFolder:
    """A directory with config.json and its weights, in one safetensors file or in the shards of an index."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self.config = read_json(path / "config.json")
        self.tokenizer_files = {name: path / name for name in TOKENIZER_FILES if (path / name).is_file()}
        self._files: dict[str, SafetensorsFile] = {}
        for file, named in _weights(path).items():
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

    def names(self) -> frozenset[str]:
        """The tensors there are."""
        return frozenset(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._files[name].shape(name)

    def dtype(self, name: str) -> str:
        """The format's name of a tensor's dtype."""
        return self._files[name].dtype(name)

    def is_packed(self, name: str) -> bool:
        """No tensor is, as it lies there: see `jaxlin.quantized.methods`."""
        return False

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name].path

    def read(self, name: str) -> np.ndarray:
        """A tensor, in its stored dtype."""
        return self._files[name].read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor; the others are not read."""
        return self.read_slice(name, (slice(start, stop),))

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, one slice an axis; what leading axes leave out is not read."""
        return self._files[name].read_slice(name, index)


def _weights(path: Path) -> dict[str, set[str] | None]:
    """The files to open, and the tensors that an index says are in each; a single file goes before an index."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if single.is_file():
        if path_exists(index):
            LOG.warning("%s: %s is read, as transformers does; %s beside it is not.", path, single.name, index.name)
        return {single.name: None}
    if not path_exists(index):
        raise _no_weights(path)
    shards: dict[str, set[str] | None] = {}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected an object under 'weight_map'; found {type(weight_map).__name__}.")
    for tensor, file in weight_map.items():
        # Names are judged as written: in the hub's cache the files themselves are links out of the folder.
        if not isinstance(file, str) or Path(file).name != file or set(file) & {"\\", "\0"} or file in ("", ".", ".."):
            raise CheckpointError(
                f"{index}, {tensor}: expected the name of a file in the same folder; found {quoted(file)}."
            )
        if not path_exists(path / file) or not (path / file).is_file():
            raise CheckpointError(f"{index}: expected the shard {file} beside it; found none. Download it again.")
        named = shards.setdefault(file, set())
        assert named is not None
        named.add(tensor)
    return shards


def _no_weights(path: Path) -> CheckpointError:
    pickles = sorted(found.name for pattern in PICKLES for found in path.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{path}: expected model.safetensors; found only {pickles[0]}, a pickle, which could run code "
            "and is never opened. Convert it to safetensors, or take a revision that has them."
        )
    message = f"{path}: expected model.safetensors or model.safetensors.index.json; found neither."
    if packed := sorted(found.name for found in path.glob("*.gguf")):
        message += f" To load the GGUF file in it, name that file: {path / packed[0]}."
    return CheckpointError(message)
