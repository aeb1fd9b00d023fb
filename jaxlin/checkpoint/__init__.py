"""Checkpoints: what a file says, never what it means. Nothing here knows a model, and nothing is ever unpickled."""

import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.checkpoint.hub import locate


@runtime_checkable
class Checkpoint(Protocol):
    """A checkpoint that is open: its words are read, its weights are not.

    Attributes:
        source: where it is, for messages.
        format: of its weights, ``"safetensors"`` or ``"gguf"``.
        config: config.json as it is, or the metadata of a GGUF file.
        tokenizer_files: the files of its tokenizer and generation_config.json, those that are there, by name.
    """

    source: str
    format: str
    config: dict[str, Any]
    tokenizer_files: dict[str, Path]

    def names(self) -> frozenset[str]:
        """The tensors there are."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, its slowest axis first."""
        ...

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as the format names it."""
        ...

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor, for messages."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor in their stored dtype; quantised GGUF types are decoded to float32."""
        ...

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, one slice an axis; what leading axes leave out is not read."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor."""
        ...


def open_checkpoint(name: str | os.PathLike[str], revision: str | None = None) -> CheckpointFolder | GGUFFile:
    """Open a directory, a ``.gguf`` file, or what a hub id names, which is downloaded if it is not in the cache.

    Raises:
        CheckpointError: it cannot be had, or is damaged.
    """
    path = locate(name, revision)
    return GGUFFile(path) if path.is_file() else CheckpointFolder(path)
