"""`QuantizedFormat`: one way to store quantised weights in safetensors, and the folder that is read through it.

A format is one file beside this one. It says how a checkpoint stores its tensors (`QuantizedFormat`), what they are in
memory (a `PackedMatrix`, perhaps that of another format), and what shape that has before anything is read
(`abstract_matrix`). `jaxlin.quantized.methods` is the registry. Nothing is decoded on the way into memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.safetensors import DTYPES
from jaxlin.common.errors import CheckpointError
from jaxlin.common.printable import quoted
from jaxlin.quantized.matrix import PackedMatrix


class ModuleTensors:
    """The tensors of one module of a checkpoint, each named by what follows the name of the module.

    Attributes:
        folder: the checkpoint.
        name: the name of the module, such as ``model.layers.0.mlp.up_proj``.
        stem: the rest of the name of the tensor that has the codes; empty if there is no rest.
        joint: what stands between the name of the module and the rest.
    """

    def __init__(self, folder: CheckpointFolder, name: str, stem: str, joint: str) -> None:
        self.folder = folder
        self.name = name
        self.stem = stem
        self.joint = joint

    def tensor(self, suffix: str) -> str:
        """The full name of a tensor."""
        return f"{self.name}{self.joint}{suffix}" if suffix else self.name

    def __contains__(self, suffix: str) -> bool:
        return self.tensor(suffix) in self.folder.names()

    def shape(self, suffix: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.folder.shape(self.tensor(suffix))

    def dtype(self, suffix: str) -> str:
        """The dtype of a tensor as safetensors names it."""
        return self.folder.dtype(self.tensor(suffix))

    def read(self, suffix: str, expert: int | None = None) -> np.ndarray:
        """The values of a tensor, or those of one expert of a tensor that has those of all."""
        name = self.tensor(suffix)
        return self.folder.read(name) if expert is None else self.folder.read_expert(name, expert)

    def matrix_shape(
        self, expected: str = "a matrix, as quantised weights have rows and columns", dtype: str | None = None
    ) -> tuple[int, int]:
        """The shape of the tensor `stem`.

        Raises:
            CheckpointError: it is no matrix, or has another dtype than `dtype`; the message says `expected`.
        """
        shape, stored = self.shape(self.stem), self.dtype(self.stem)
        if len(shape) != 2 or dtype not in (None, stored):
            raise self.error(self.stem, expected, f"{stored} of shape {shape}")
        return shape[0], shape[1]

    def companion(
        self, suffix: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...], expert: int | None = None
    ) -> np.ndarray:
        """The values of a tensor that the weight needs, which has one of `dtypes` and one of `shapes`.

        Args:
            suffix: the rest of its name.
            dtypes: the dtypes that it may have.
            shapes: the shapes that it may have.
            expert: the expert whose values are read, of a tensor that has those of all.

        Raises:
            CheckpointError: it is missing, or has another dtype or shape.
        """
        self.companion_dtype(suffix, dtypes, *shapes)
        return self.read(suffix, expert)

    def companion_dtype(self, suffix: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> np.dtype[Any]:
        """The dtype of a tensor that the weight needs, from its header.

        Args:
            suffix: the rest of its name.
            dtypes: the dtypes that it may have.
            shapes: the shapes that it may have; any without them.

        Raises:
            CheckpointError: it is missing, or has another dtype or shape.
        """
        name = self.tensor(suffix)
        expected = f"a tensor {name} of {' or '.join(dtypes)}"
        expected += f" and shape {' or '.join(map(str, shapes))}" if shapes else ""
        if suffix not in self:
            file = self.folder.file_of(self.tensor(self.stem))
            raise CheckpointError(f"{file}: expected {expected}, which {self.tensor('weight')} needs; found none.")
        dtype, shape = self.dtype(suffix), self.shape(suffix)
        if dtype not in dtypes or (shapes and shape not in shapes):
            raise CheckpointError(f"{self.folder.file_of(name)}: expected {expected}; found {dtype} of shape {shape}.")
        return DTYPES[dtype]

    def error(self, suffix: str, expected: str, value: str) -> CheckpointError:
        """An error about a tensor that is there."""
        name = self.tensor(suffix)
        return CheckpointError(f"{self.folder.file_of(name)}, tensor {name}: expected {expected}; found {value}.")


class QuantizedFormat(ABC):
    """How a ``quantization_config`` stores the weights that it quantises.

    Args:
        config: the ``quantization_config``, of which every key that matters is taken.
    """

    stem: ClassVar[str] = "weight"
    """The suffix of the tensor that has the codes of a weight."""

    companions: ClassVar[tuple[str, ...]] = ()
    """The suffixes of the other tensors that a weight is computed from."""

    unused: ClassVar[tuple[str, ...]] = ()
    """The suffixes of tensors that quantise activations: the map is that of the weights alone."""

    joint: ClassVar[str] = "."
    """What stands between the name of a module and these suffixes."""

    skipped_modules: tuple[str, ...] = ()
    """Parts of the names of the modules that are not quantised."""

    @abstractmethod
    def __init__(self, config: ConfigReader) -> None: ...

    def take_skipped(self, config: ConfigReader, key: str) -> None:
        """Take the names, or parts of names, of the modules that are not quantised.

        Raises:
            ConfigError: the value of `key` is not a list of names.
        """
        names = config.take(key, list, [])
        if not all(isinstance(name, str) for name in names):
            raise config.error(key, "a list of names of modules", quoted(names))
        self.skipped_modules += tuple(names)

    def quantizes(self, module: str) -> bool:
        """Whether the config says that the weight of `module`, which is part of a layer, is quantised."""
        return not any(f".{name}." in f".{module}." for name in self.skipped_modules)

    def modules(self, folder: CheckpointFolder) -> Iterator[ModuleTensors]:
        """The modules that may be quantised."""
        end = f"{self.joint}{self.stem}"
        for name in folder.names():
            if name.endswith(end):
                yield ModuleTensors(folder, name.removesuffix(end), self.stem, self.joint)

    def weight_name(self, module: ModuleTensors) -> str:
        """The name under which the weight of `module` is read."""
        return f"{module.name}.weight"

    @abstractmethod
    def abstract_matrix(self, shape: tuple[int, int], dtype: str, module: ModuleTensors | None = None) -> PackedMatrix:
        """A packed matrix without its values.

        Args:
            shape: ``(out, in)``.
            dtype: the dtype of the weights that are not quantised.
            module: the tensors of the matrix, whose headers say what a file may choose for itself, such as the dtype of
                scales; without them it is as in most files.

        Raises:
            CheckpointError: a tensor that the matrix needs is missing, or has a dtype that it cannot have.
        """

    def abstract_rows(
        self,
        tensor: str,
        shape: tuple[int, int],
        index: Int[np.ndarray, " n"],
        dtype: str,
        module: ModuleTensors | None = None,
    ) -> PackedMatrix:
        """Some rows of a packed matrix without its values.

        Args:
            tensor: the name of the weight.
            shape: that of the matrix.
            index: its rows.
            dtype: the dtype of the weights that are not quantised.
            module: as in `abstract_matrix`.

        Raises:
            CheckpointError: as `abstract_matrix`.
        """
        return self.abstract_matrix((len(index), shape[1]), dtype, module)

    def is_packed(self, module: ModuleTensors) -> bool:
        """Whether the tensor `stem` of a module, which is there, has codes and not values."""
        del module
        return True

    def shape(self, module: ModuleTensors) -> tuple[int, ...]:
        """The shape of a packed weight."""
        return module.shape(module.stem)

    @abstractmethod
    def read(self, module: ModuleTensors) -> PackedMatrix:
        """A packed weight."""

    def read_expert(self, module: ModuleTensors, expert: int) -> PackedMatrix:
        """The packed weight of one expert, of a module that has those of all.

        Raises:
            CheckpointError: the format has no such modules.
        """
        del expert
        expected = "a matrix, as this format has weights of experts one by one"
        raise module.error(module.stem, expected, f"shape {module.shape(module.stem)}")


class QuantizedFolder:
    """A checkpoint folder whose quantised weights are read as packed matrices, each under the name of the weight.

    Raises:
        CheckpointError: a weight is stored twice, with codes and with values.
    """

    def __init__(self, folder: CheckpointFolder, layout: QuantizedFormat) -> None:
        self._folder = folder
        self._format = layout
        modules = layout.modules(folder)
        self._packed = {layout.weight_name(module): module for module in modules if layout.is_packed(module)}
        stored = {name: module.tensor(module.stem) for name, module in self._packed.items()}
        if twice := sorted(name for name, tensor in stored.items() if name in folder.names() and name != tensor):
            raise CheckpointError(
                f"{folder.file_of(twice[0])}: expected {stored[twice[0]]} alone, which {twice[0]} is unpacked from; "
                "found both."
            )

    def names(self) -> frozenset[str]:
        """The names of all weights; a packed matrix has one name, whatever the number of its tensors."""
        suffixes = (self._format.stem, *self._format.companions, *self._format.unused)
        parts = {module.tensor(suffix) for module in self._packed.values() for suffix in suffixes}
        return frozenset(self._folder.names() - parts).union(self._packed)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, that of its values if it is packed."""
        module = self._packed.get(name)
        return self._folder.shape(name) if module is None else self._format.shape(module)

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is read as a packed matrix."""
        return name in self._packed

    def module(self, name: str) -> ModuleTensors | None:
        """The tensors of a packed matrix, or of those of all experts; None if it is not packed."""
        return self._packed.get(name)

    def read(self, name: str) -> np.ndarray | PackedMatrix:
        """The values of a tensor, or its packed matrix."""
        module = self._packed.get(name)
        return self._folder.read(name) if module is None else self._format.read(module)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | PackedMatrix:
        """Some rows of a tensor."""
        module = self._packed.get(name)
        if module is None:
            return self._folder.read_rows(name, start, stop)
        return self._format.read(module).rows(np.arange(start, stop))

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor that is not packed."""
        return self._folder.read_slice(name, index)

    def read_expert(self, name: str, expert: int) -> np.ndarray | PackedMatrix:
        """The values or the packed matrix of one expert of a tensor that has those of all."""
        module = self._packed.get(name)
        return self._folder.read_expert(name, expert) if module is None else self._format.read_expert(module, expert)


def is_pair_of_sizes(value: Any) -> bool:
    """Whether `value`, from JSON, is a list of two integers of at least 1."""
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
