"""Safetensors whose weights are quantised: the tensors that belong together gathered into packed matrices.

Nothing is decoded here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.common.errors import CheckpointError
from jaxlin.common.printable import quoted
from jaxlin.quantized import PackedMatrix


class Quantized(ABC):
    """The tensors of a folder, those that are quantised as packed matrices. A subclass is one method.

    Args:
        folder: the checkpoint; None where only `planned` is asked for.
        said: its ``quantization_config``.
    """

    stem: ClassVar[str] = "weight"
    """What the name of the tensor that is read as a packed weight ends with, after the name of its module."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """What the names of the other tensors that belong to a weight end with."""

    left_out: ClassVar[tuple[str, ...]] = ()
    """Tensors that quantise activations, which the map of the dequantised weights does not."""

    def __init__(self, folder: CheckpointFolder | None, said: ConfigReader) -> None:
        self.read_config(said)
        self._modules: set[str] = set()
        if folder is not None:
            self.folder = folder
            self._modules = {
                name.removesuffix(f".{self.stem}")
                for name in folder.names()
                if name.endswith(f".{self.stem}") and self.is_packed_tensor(name)
            }
            twice = sorted(f"{module}.weight" for module in self._modules) if self.stem != "weight" else []
            if twice := [name for name in twice if name in folder.names()]:
                raise CheckpointError(
                    f"{folder.file_of(twice[0])}: expected {_module(twice[0])}.{self.stem} alone, which {twice[0]} is "
                    f"unpacked from; found both."
                )

    @abstractmethod
    def read_config(self, said: ConfigReader) -> None:
        """Take what matters of the quantisation config."""

    @abstractmethod
    def is_packed_tensor(self, name: str) -> bool:
        """Whether the tensor `name`, which ends with `stem`, is of a quantised weight."""

    @abstractmethod
    def packed(self, module: str) -> PackedMatrix:
        """The weight of `module`."""

    def take_skipped(self, said: ConfigReader, key: str) -> None:
        """Read the modules that are not quantised.

        Raises:
            ConfigError: the value of `key` is no list of names.
        """
        names = said.take(key, list, [])
        if not all(isinstance(name, str) for name in names):
            raise said.error(key, "a list of names of modules", quoted(names))
        self.skipped += tuple(names)

    @abstractmethod
    def planned(self, shape: tuple[int, int], dtype: str) -> PackedMatrix:
        """A matrix of `shape` without its values, as far as the config says how it is stored.

        Args:
            shape: ``(out, in)``.
            dtype: what the config says of weights that are not quantised.
        """

    def converts(self, module: str) -> bool:
        """Whether the config says that the weight of `module`, which is one of a layer, is quantised."""
        return not any(f".{name}." in f".{module}." for name in self.skipped)

    skipped: tuple[str, ...] = ()
    """Parts of the names of modules that are not quantised."""

    def is_packed(self, name: str) -> bool:
        """Whether the tensor `name` is read as a packed matrix."""
        return name.endswith(".weight") and _module(name) in self._modules

    def packed_shape(self, module: str) -> tuple[int, ...]:
        """The shape of the weight of `module`."""
        return self.folder.shape(f"{module}.weight")

    def matrix_shape(self, module: str) -> tuple[int, int]:
        """The shape of the weight of `module` as it is stored, which has rows and columns.

        Raises:
            CheckpointError: it is a vector, or of more axes.
        """
        shape = self.folder.shape(f"{module}.weight")
        if len(shape) != 2:
            raise CheckpointError(
                f"{self.folder.file_of(f'{module}.weight')}, tensor {module}.weight: expected a matrix, as what is "
                f"quantised has rows and columns; found {self.folder.dtype(f'{module}.weight')} of shape {shape}."
            )
        return shape[0], shape[1]

    def names(self) -> Iterable[str]:
        """The tensors there are, without those that belong to a packed one."""
        suffixes = (self.stem, *self.suffixes, *self.left_out)
        belong = {f"{module}.{suffix}" for module in self._modules for suffix in suffixes}
        return (self.folder.names() - belong) | {f"{module}.weight" for module in self._modules}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one, as it is once unpacked."""
        return self.packed_shape(_module(name)) if self.is_packed(name) else self.folder.shape(name)

    def dtype(self, name: str) -> str:
        """The format's name of a tensor's dtype; "packed" of a packed one."""
        return "packed" if self.is_packed(name) else self.folder.dtype(name)

    def read(self, name: str) -> np.ndarray | PackedMatrix:
        """The values of one, or the packed matrix."""
        return self.packed(_module(name)) if self.is_packed(name) else self.folder.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | PackedMatrix:
        """Some rows of one."""
        if self.is_packed(name):
            return self.packed(_module(name)).rows(start, stop)
        return self.folder.read_rows(name, start, stop)

    def part(self, module: str, suffix: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> np.ndarray:
        """A tensor that belongs to the weight of `module`, of one of `dtypes` and of `shapes`.

        Raises:
            CheckpointError: it is missing, or is another.
        """
        name = f"{module}.{suffix}"
        expected = f"a tensor {name} of {' or '.join(dtypes)} and shape {' or '.join(map(str, shapes))}"
        if name not in self.folder.names():
            raise CheckpointError(
                f"{self.folder.file_of(f'{module}.{self.stem}')}: expected {expected}, which {module}.weight needs; "
                "found none."
            )
        dtype, shape = self.folder.dtype(name), self.folder.shape(name)
        if dtype not in dtypes or shape not in shapes:
            raise CheckpointError(f"{self.folder.file_of(name)}: expected {expected}; found {dtype} of shape {shape}.")
        return self.folder.read(name)


def _module(name: str) -> str:
    return name.removesuffix(".weight")
