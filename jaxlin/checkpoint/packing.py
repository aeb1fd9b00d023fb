"""Safetensors whose weights are quantised: the tensors that belong together gathered into packed matrices.

Nothing is decoded here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.folder import Folder
from jaxlin.errors import CheckpointError
from jaxlin.packed import FourBit, Int8, Packed, Scaled


class Quantized(ABC):
    """The tensors of a folder, those that are quantised as packed matrices. A subclass is one method.

    Args:
        folder: the checkpoint.
        said: its ``quantization_config``.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """What the names of the tensors that belong to a weight end with, after the name of its module."""

    left_out: ClassVar[tuple[str, ...]] = ()
    """Tensors that quantise activations, which the map of the dequantised weights does not."""

    def __init__(self, folder: Folder, said: ConfigReader) -> None:
        self.folder = folder
        self.read_config(said)
        self._modules = {name.removesuffix(".weight") for name in folder.names() if self.is_packed(name)}

    @abstractmethod
    def read_config(self, said: ConfigReader) -> None:
        """Take what matters of the quantisation config."""

    @abstractmethod
    def is_packed(self, name: str) -> bool:
        """Whether the tensor `name` is a quantised weight."""

    @abstractmethod
    def packed(self, module: str) -> FourBit | Int8 | Scaled:
        """The weight of `module`."""

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
        belong = {f"{module}.{suffix}" for module in self._modules for suffix in (*self.suffixes, *self.left_out)}
        return self.folder.names() - belong

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one, as it is once unpacked."""
        module = name.removesuffix(".weight")
        return self.packed_shape(module) if module in self._modules else self.folder.shape(name)

    def dtype(self, name: str) -> str:
        """The format's name of a tensor's dtype; "packed" of a packed one."""
        return "packed" if name.removesuffix(".weight") in self._modules else self.folder.dtype(name)

    def read(self, name: str) -> np.ndarray | Packed:
        """The values of one, or the packed matrix."""
        module = name.removesuffix(".weight")
        return self.packed(module) if module in self._modules else self.folder.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | Packed:
        """Some rows of one."""
        module = name.removesuffix(".weight")
        if module in self._modules:
            return self.packed(module).rows(start, stop)
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
                f"{self.folder.file_of(f'{module}.weight')}: expected {expected}, which {module}.weight needs; "
                "found none."
            )
        dtype, shape = self.folder.dtype(name), self.folder.shape(name)
        if dtype not in dtypes or shape not in shapes:
            raise CheckpointError(f"{self.folder.file_of(name)}: expected {expected}; found {dtype} of shape {shape}.")
        return self.folder.read(name)
