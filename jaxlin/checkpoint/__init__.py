"""Files of checkpoints: config.json, safetensors and GGUF, from a directory or the hub.

This package reads what a file contains and knows no model. Every file is a stranger's: nothing is unpickled, no code of
a file is run, no path leads out of its folder, and every count is checked against the size of the file.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.checkpoint.hub import Name, Revision, locate
from jaxlin.common.arguments import checked


@runtime_checkable
class Checkpoint(Protocol):
    """An open checkpoint, whose config is read, and whose weights are read on demand.

    Attributes:
        source: its path, for messages.
        format: the format of its weights, ``"safetensors"`` or ``"gguf"``.
        config: the contents of config.json, or the metadata of a GGUF file.
        tokenizer_files: its files of `jaxlin.checkpoint.folder.TOKENIZER_FILES`, by name.
    """

    source: str
    format: str
    config: dict[str, Any]
    tokenizer_files: dict[str, Path]

    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, its slowest axis first."""
        ...

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as the format names it."""
        ...

    def file_of(self, name: str) -> Path:
        """The file that contains a tensor, for messages."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor in their stored dtype; quantised GGUF types are decoded to float32."""
        ...

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, with a slice for each axis; what the slices of leading axes leave out is not read."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor."""
        ...


@checked
def open_checkpoint(name: Name, revision: Revision = None) -> CheckpointFolder | GGUFFile:
    """Open a directory, a ``.gguf`` file or a hub id, whose files are downloaded if they are not in the cache.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be downloaded, or it is damaged.
    """
    path = locate(name, revision)
    return GGUFFile(path) if path.is_file() else CheckpointFolder(path)


__all__ = ["Checkpoint", "CheckpointFolder", "GGUFFile", "open_checkpoint"]
