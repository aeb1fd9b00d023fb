"""Read torch's ``.pt`` files of plain values and tensors without unpickling.

Such a file is an uncompressed zip archive. It has a pickle, ``NAME/data.pkl``, and one entry of raw values for each
storage, ``NAME/data/KEY``. A pickle is a program, and unpickling would run it. This file interprets the instructions
that build plain values, and of those that name or call something only the few that make up a tensor; it refuses all
others. PyTorch has such a reader (``weights_only=True``), but jaxlin does not depend on PyTorch.

Format: ``torch/serialization.py``, and ``pickletools`` of the standard library for the instructions.
"""

import math
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxlin.common.errors import CheckpointError
from jaxlin.common.files import check_regular_file
from jaxlin.common.printable import kind_of

MAX_PICKLE_BYTES = 2**24
"""The largest pickle that is read; the values of tensors are not in it."""

MAX_AXES = 64
"""The most axes of a tensor, which is NumPy's limit."""

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
"""The dtype of each kind of storage that is read, by torch's name."""


class _Name(NamedTuple):
    """The name of a Python object, such as ``torch.HalfStorage``; the object itself is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class _Storage(NamedTuple):
    """The raw values of one tensor or several: `size` values of `dtype` in the entry ``data/KEY``."""

    dtype: np.dtype[Any]
    key: str
    size: int


_TENSOR, _PARAMETER = _Name("torch._utils", "_rebuild_tensor_v2"), _Name("torch._utils", "_rebuild_parameter")
_ORDERED, _SIZE = _Name("collections", "OrderedDict"), _Name("torch", "Size")

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pt(path: Path) -> dict[str | int, Any]:
    """The dictionary in a file: strings, numbers, lists and dictionaries, and tensors as arrays.

    Time and memory are proportional to the size of the file.

    Raises:
        CheckpointError: no such file, a damaged one, or one that `torch.save` does not write of such values.
    """
    check_regular_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Reader(archive, path).read()
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
    # zipfile raises all of these for archives that are damaged, encrypted or compressed in a way it does not know.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: expected a zip archive, as torch.save writes; found none ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary; found {kind_of(content)}.")
    return content


class _Reader:
    """One open archive, and the stack and the memo of the interpreter.

    A value on the stack may be nested without end, or share its parts: none is ever hashed, compared or printed.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.path = archive, path
        self.storages: dict[str, bytes] = {}
        self.values_used: dict[str, int] = {}
        self.bytes_left = path.stat().st_size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path}: expected one data.pkl in the archive; found {len(pickles)}.")
        self.pickle, self.folder = pickles[0], pickles[0].removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        if order in archive.namelist() and self._entry(order, max_bytes=16).strip() != b"little":
            raise CheckpointError(f"{path}: expected values in little-endian order; found another.")

    def _entry(self, name: str, max_bytes: int) -> bytes:
        try:
            info = self.archive.getinfo(name)
        except KeyError as error:
            raise CheckpointError(f"{self.path}: expected an entry {name} in the archive; found none.") from error
        # A small compressed entry can unpack to any size, and entries can overlap in the file.
        self.bytes_left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > max_bytes or self.bytes_left < 0:
            raise CheckpointError(
                f"{self.path}, {name}: expected an uncompressed entry of at most {max_bytes} bytes that overlaps no "
                f"other; found {info.file_size} bytes."
            )
        return self.archive.read(info)

    def read(self) -> Any:
        """The value that the pickle describes."""
        pickle = self._entry(self.pickle, MAX_PICKLE_BYTES)
        try:
            for instruction, argument, _ in pickletools.genops(pickle):
                self._interpret(instruction.name, argument)
            return self.stack.pop()
        except CheckpointError:
            raise
        # The instructions do not fit together: an empty stack, no list to append to, a wrong number of arguments.
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{self.path}, data.pkl: expected a complete pickle; found one that is damaged ({error})."[:300]
            ) from error

    def _interpret(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(self._top(_TUPLES[name]))]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "APPENDS":
            items = self._since_mark()
            stack[-1].extend(items)
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "SETITEMS":
            self._set_items(self._since_mark())
        elif name == "SETITEM":
            pair = list(self._top(2))
            del stack[-2:]
            self._set_items(pair)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(*argument.split(" ")))
        elif name == "STACK_GLOBAL":
            name_of, module = stack.pop(), stack.pop()
            stack.append(_Name(self._text(module), self._text(name_of)))
        elif name == "BINPERSID":
            stack.append(self._storage(*stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise CheckpointError(f"{self.path}, data.pkl: expected plain values and tensors; found {name}.")

    def _top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("too few values")
        return self.stack[-count:]

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        if start > len(self.stack):
            raise IndexError("a mark past the values")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        """Put keys and values, which alternate in `items`, into the dictionary on top of the stack."""
        if any(type(key) not in (str, int) for key in items[::2]):
            raise CheckpointError(f"{self.path}, data.pkl: expected keys that are text or integers; found others.")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _text(self, value: Any) -> str:
        if type(value) is not str:
            raise TypeError("a name that is not text")
        return value

    def _storage(self, tag: Any, kind: Any, key: Any, device: Any, size: Any) -> _Storage:
        if type(kind) is not _Name or kind.module != "torch" or kind.name not in STORAGE_DTYPES:
            other = kind if type(kind) is _Name else kind_of(kind)
            names = ", ".join(STORAGE_DTYPES)
            raise CheckpointError(f"{self.path}, data.pkl: expected a storage of torch, one of {names}; found {other}.")
        if type(size) is not int or size < 0:
            raise TypeError("a storage without a size")
        return _Storage(STORAGE_DTYPES[kind.name], self._text(key), size)

    def _call(self, function: Any, arguments: Any) -> Any:
        """The result of one of the four calls that make up a tensor."""
        name = function if type(function) is _Name else None
        if name == _ORDERED and len(arguments) == 0:
            return {}
        # Only a tuple, which is returned as it is: each call would copy a list, and a small file can have many calls.
        if name == _SIZE and len(arguments) == 1 and type(arguments[0]) is tuple:
            return arguments[0]
        if name == _PARAMETER and type(arguments[0]) is np.ndarray:
            return arguments[0]
        # A seventh argument would say that the values are to be negated or conjugated.
        if name == _TENSOR and len(arguments) <= 6:
            return self._tensor(*arguments[:4])
        raise CheckpointError(
            f"{self.path}, data.pkl: expected plain values and tensors; found a call of "
            f"{name or kind_of(function)}, which could do anything and is not made."
        )

    def _tensor(self, storage: Any, start: Any, shape: Any, strides: Any) -> np.ndarray:
        if type(storage) is not _Storage or not (len(shape) == len(strides) <= MAX_AXES):
            raise TypeError("a tensor without values")
        if any(type(n) is not int or n < 0 for n in (start, *shape, *strides)):
            raise TypeError("a tensor without a shape")
        size, step = math.prod(shape), 1
        for n, stride in zip(reversed(shape), reversed(strides), strict=True):
            if size and n != 1 and stride != step:
                raise CheckpointError(
                    f"{self.path}: expected contiguous tensors; found strides {strides} for the shape {shape}. "
                    "Save them with .contiguous()."
                )
            step *= n
        if start + size > storage.size:
            raise CheckpointError(f"{self.path}: expected a tensor within its storage; found {shape} from {start} on.")
        entry, width = f"{self.folder}data/{storage.key}", storage.dtype.itemsize
        if entry not in self.storages:  # it is read once, though several tensors may share it
            self.storages[entry], self.values_used[entry] = self._entry(entry, storage.size * width), 0
        # Tensors may share a storage, but not its values: otherwise a small file could have many large tensors.
        self.values_used[entry] += size
        bytes_read = len(self.storages[entry])
        if bytes_read != storage.size * width or self.values_used[entry] > storage.size:
            raise CheckpointError(
                f"{self.path}, {entry}: expected {storage.size * width} bytes; found {bytes_read}, for "
                f"{self.values_used[entry]} values."
            )
        return np.frombuffer(self.storages[entry], storage.dtype, size, start * width).reshape(shape)
