"""The arrays of a checkpoint that parameters are made of, each read from where the port says it is stored."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from jaxlin.checkpoint.safetensors import FLOATS
from jaxlin.common.errors import CheckpointError
from jaxlin.porting.port import Port
from jaxlin.porting.tensor_rows import EXPERT, TensorRows
from jaxlin.quantized import BFloat16, PackedMatrix


@runtime_checkable
class TensorSource(Protocol):
    """A checkpoint under Hugging Face's names, whatever its format."""

    def names(self) -> Collection[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is read as a packed matrix, or as one for each expert."""
        ...

    def read(self, name: str) -> np.ndarray | PackedMatrix:
        """The values of a tensor, or its packed matrix."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | PackedMatrix:
        """Some rows of a tensor."""
        ...

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor that is not packed, with a slice for each axis; trailing ones may be left out."""
        ...

    def read_expert(self, name: str, expert: int) -> np.ndarray | PackedMatrix:
        """The values or the packed matrix of one expert of a tensor that has those of all."""
        ...


class _Located(NamedTuple):
    """Where an array is: its tensor, its rows in it, its shape, and its index in a tensor that has all experts."""

    tensor: str
    rows: TensorRows
    shape: tuple[int, ...]
    expert: int | None


class StoredArrays:
    """The arrays of a checkpoint, by the parameters that are made of them.

    Args:
        tensors: the checkpoint.
        port: its port, in the checkpoint's own layout.
        config: of the decoder.
        source: the path of the checkpoint, for messages.

    Attributes:
        located: the names of the tensors that parameters are made of, of those that were looked for.
    """

    def __init__(self, tensors: TensorSource, port: Port, config: Any, source: str) -> None:
        self.located: set[str] = set()
        self._tensors, self._port, self._config, self._source = tensors, port, config, source
        self._names = set(tensors.names())
        is_tied = config.tie_word_embeddings
        self.tied = port.tensor_of(config, "lm_head.weight").tensor if is_tied else None

    def locate(
        self, name: str, shape: tuple[int, ...], layer: int | None = None, expert: int | None = None
    ) -> _Located:
        """The tensor that a parameter is read from; arguments are those of `array`.

        Raises:
            CheckpointError: the tensor is missing, or has another shape.
        """
        rows = self._port.tensor_of(self._config, name, layer)
        tensor = rows.tensor.replace(EXPERT, str(expert))
        if rows.transposed and tensor in self._names and self._tensors.is_packed(tensor):
            rows = replace(rows, transposed=False)  # formats pack [out, in], whatever the module had
        if name == "embed_tokens.weight" and tensor not in self._names and self.tied:
            tensor = self.tied  # one of two equal matrices is enough
        experts, shape = (shape[:1], shape[1:]) if expert is not None else ((), shape)
        if rows.constant is not None:
            return _Located(tensor, rows, shape, None)
        # The tensor of all experts, where not each has its own.
        stack = experts if EXPERT not in rows.tensor else ()
        expected = (*stack, *rows.stored_shape(shape))
        if tensor not in self._names:
            raise CheckpointError(
                f"{self._source}: expected a tensor {tensor} of shape {expected}{self._why(layer)}; found none."
            )
        stored = self._tensors.shape(tensor)
        if stored != expected and not _same_values(stored, expected):
            raise CheckpointError(f"{self._source}, tensor {tensor}: expected shape {expected}; found {stored}.")
        self.located.add(tensor)
        return _Located(tensor, rows, shape, expert if stack else None)

    def array(self, name: str, shape: tuple[int, ...], layer: int | None = None, expert: int | None = None) -> Any:
        """The array of a parameter: a packed matrix, or an array whose rows are read on demand.

        Args:
            name: the parameter's path.
            shape: that of the parameter, without the axis of layers.
            layer: the layer, if the parameter has layers.
            expert: the expert, if the first axis of `shape` counts experts.

        Raises:
            CheckpointError: as `locate`; or the values are not finite.
        """
        located = self.locate(name, shape, layer, expert)
        constant, shape = located.rows.constant, located.shape
        if constant is not None:
            return FileArray(shape, lambda start, stop: np.full((stop - start, *shape[1:]), constant, np.float32))
        place = f"{self._source}, tensor {located.tensor}"
        if self._tensors.is_packed(located.tensor):
            packed = self._packed(located, place)
            check(packed, place)
            return packed

        def read(start: int, stop: int) -> np.ndarray:
            values = self._values(located, start, stop)
            check(values, place)
            return values

        array = FileArray(located.shape, read)
        return BFloat16(array) if array.dtype == np.uint16 else array

    def unlike_format(self, name: str, layer: int, expert: int) -> CheckpointError:
        """An error about an expert whose tensor is in another format than the first one of its layer."""
        tensor = self._port.tensor_of(self._config, name, layer).tensor.replace(EXPERT, str(expert))
        return CheckpointError(
            f"{self._source}, tensor {tensor}: expected the format of the first expert of its layer; found another."
        )

    def _why(self, layer: int | None) -> str:
        """Why a layer should have a tensor, in a model whose layers are of several kinds."""
        kinds = self._config.layer_kinds
        return f", as the config has layer {layer} of the kind {kinds[layer]}" if layer is not None and kinds else ""

    def _packed(self, located: _Located, place: str) -> PackedMatrix:
        """A packed matrix, of which all rows are read at once."""
        tensor, rows, shape, expert = located
        if len(shape) != 2:
            raise CheckpointError(f"{place}: expected values, as of a vector; found codes.")
        total = rows.total or shape[0]
        wanted = rows.indices(shape[0])
        is_run, is_all = (np.array_equal(wanted, np.arange(n) + wanted[0]) for n in (len(wanted), total))
        if is_run and not is_all and expert is None:
            packed: Any = self._tensors.read_rows(tensor, int(wanted[0]), int(wanted[-1]) + 1)
        else:
            packed = self._tensors.read(tensor) if expert is None else self._tensors.read_expert(tensor, expert)
            packed = packed if is_all else packed.rows(wanted)
        return packed

    def _values(self, located: _Located, start: int, stop: int) -> np.ndarray:
        """Some rows of an array."""
        tensor, rows, shape, expert = located
        if start == stop:  # for the dtype; of columns, none could be read without all rows
            return self._tensors.read_slice(tensor, (slice(0, 0),)).reshape(0, *shape[1:])
        span, order = rows.span(shape[0], start, stop)
        experts = () if expert is None else (slice(expert, expert + 1),)
        if len(self._tensors.shape(tensor)) < len(shape):  # one row, stored as a vector
            values = self._tensors.read_slice(tensor, ())[None][span]
        elif rows.transposed:
            values = self._tensors.read_slice(tensor, (*experts, slice(None), span)).swapaxes(-1, -2)
        else:
            values = self._tensors.read_slice(tensor, (*experts, span))
        values = values if expert is None else values[0]
        values = values if order is None else values[order]
        return values.reshape(stop - start, *shape[1:])


def _same_values(stored: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a matrix is stored with one more axis, or as a vector, because an axis has one element."""
    without_ones = [tuple(size for size in shape if size != 1) for shape in (stored, expected)]
    return len(expected) == 2 and len(stored) != 2 and without_ones[0] == without_ones[1]


def check(values: np.ndarray | PackedMatrix, place: str) -> None:
    """Refuse what no parameter can be.

    Raises:
        CheckpointError: values of no float dtype, or that are not finite.
    """
    if isinstance(values, np.ndarray) and values.dtype not in FLOATS:
        raise CheckpointError(
            f"{place}: expected values of {', '.join(map(str, FLOATS))}; found {values.dtype}. "
            "If it is quantised, config.json should say how, under quantization_config."
        )
    if not (values.is_finite() if isinstance(values, PackedMatrix) else np.isfinite(values).all()):
        raise CheckpointError(f"{place}: expected finite values; found NaN or infinity.")


class FileArray:
    """An array in a file, whose rows are read on demand; of a matrix of bfloat16, the bits are read."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray]) -> None:
        self.shape, self._read = shape, read
        dtype = read(0, 0).dtype
        self.dtype = np.dtype(np.uint16) if len(shape) == 2 and dtype == ml_dtypes.bfloat16 else dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return self._read(start, stop).view(self.dtype)
