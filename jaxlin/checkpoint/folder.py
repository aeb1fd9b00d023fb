"""A directory with config.json and safetensors: one file, or the shards of an index."""

import logging
from pathlib import Path

import numpy as np

from jaxlin.checkpoint.safetensors import SafetensorsFile
from jaxlin.common.errors import CheckpointError
from jaxlin.common.files import path_exists, read_json
from jaxlin.common.printable import quoted

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
"""Files of weights in a format that can run code when it is read."""

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
"""The files beside config.json that turn text into ids and ids into text."""


class CheckpointFolder:
    """A directory with config.json and its weights, in one safetensors file or in the shards of an index."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self.config = read_json(path / "config.json")
        self.tokenizer_files = {name: path / name for name in TOKENIZER_FILES if (path / name).is_file()}
        self._files: dict[str, SafetensorsFile] = {}
        for file, index_names in _weights(path).items():
            opened = SafetensorsFile(path / file)
            if missing := sorted((index_names or set()) - set(opened.names())):
                raise CheckpointError(
                    f"{opened.path}: expected tensor {missing[0]}, which the index names; found none."
                )
            if twice := sorted(set(opened.names()) & self._files.keys()):
                raise CheckpointError(
                    f"{opened.path}: expected each tensor in one shard; found {twice[0]} in another too."
                )
            self._files.update(dict.fromkeys(opened.names(), opened))
        self._names = frozenset(self._files)

    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._files[name].shape(name)

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as safetensors names it."""
        return self._files[name].dtype(name)

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is read as a packed matrix: none is here, see `jaxlin.quantized.open_quantized`."""
        return False

    def file_of(self, name: str) -> Path:
        """The file that contains a tensor."""
        return self._files[name].path

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, in its stored dtype."""
        return self._files[name].read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor; the others are not read."""
        return self.read_slice(name, (slice(start, stop),))

    def read_expert(self, name: str, expert: int) -> np.ndarray:
        """The values of one expert of a tensor that has those of all; those of the others are not read."""
        return self.read_slice(name, (slice(expert, expert + 1),))[0]

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, with a slice for each axis; what the slices of leading axes leave out is not read."""
        return self._files[name].read_slice(name, index)


def _weights(path: Path) -> dict[str, set[str] | None]:
    """The files to open, and the tensors of each according to the index; a single file takes precedence."""
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
        # The name is checked as it is written: in the hub's cache the files themselves are links out of the folder.
        if not isinstance(file, str) or Path(file).name != file or set(file) & {"\\", "\0"} or file in ("", ".", ".."):
            raise CheckpointError(
                f"{index}, {tensor}: expected the name of a file in the same folder; found {quoted(file)}."
            )
        if not path_exists(path / file) or not (path / file).is_file():
            raise CheckpointError(f"{index}: expected the shard {file} beside it; found none. Download it again.")
        index_names = shards.setdefault(file, set())
        assert index_names is not None
        index_names.add(tensor)
    return shards


def _no_weights(path: Path) -> CheckpointError:
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{path}: expected model.safetensors; found only {pickles[0]}, a pickle, which could run code "
            "and is never opened. Convert it to safetensors, or take a revision that has them."
        )
    message = f"{path}: expected model.safetensors or model.safetensors.index.json; found neither."
    if gguf_files := sorted(file.name for file in path.glob("*.gguf")):
        message += f" To load the GGUF file in it, name that file: {path / gguf_files[0]}."
    return CheckpointError(message)
