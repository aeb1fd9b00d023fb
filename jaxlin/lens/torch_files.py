"""torch's ``.pt`` files of plain values and tensors, read without unpickling.

Such a file is an uncompressed zip archive of a pickle, ``NAME/data.pkl``, and of one entry of raw values for each
storage, ``NAME/data/KEY``. A pickle is a program: here its instructions are read as data, and of those that name or
call something only the few that make up a tensor are known. Everything else is refused.

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

LARGEST_PICKLE = 2**24
"""Bytes of the pickle, which has no values of tensors in it."""

MOST_AXES = 64
"""Of a tensor: those of NumPy."""

STORAGES = {
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
"""torch's names of the kinds of storage that are read."""


class _Name(NamedTuple):
    """What an instruction names, such as ``torch.HalfStorage``."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class _Storage(NamedTuple):
    """The raw values that a tensor is made of: `size` of `dtype` in the entry `key`."""

    dtype: np.dtype[Any]
    key: str
    size: int


_TENSOR, _PARAMETER = _Name("torch._utils", "_rebuild_tensor_v2"), _Name("torch._utils", "_rebuild_parameter")
_ORDERED, _SIZE = _Name("collections", "OrderedDict"), _Name("torch", "Size")

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_GIVEN = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pt(path: Path) -> dict[str | int, Any]:
    """The dictionary in `path`: strings, numbers, lists and dictionaries, and tensors as arrays.

    It takes time and memory in proportion to the file.

    Raises:
        CheckpointError: no such file, not what `torch.save` writes of such values, or damaged.
    """
    check_regular_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found = _Reader(archive, path).read()
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
    # The library raises all of these of archives that are damaged, encrypted or compressed in a way it does not know.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: expected a zip archive, as torch.save writes; found none ({error}).") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a dictionary; found a {type(found).__name__}.")
    return found


class _Reader:
    """One open archive, and the stack of the instructions.

    What is on the stack may be nested without end or share its parts: it is never hashed, compared or shown.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.path = archive, path
        self.values: dict[str, bytes] = {}
        self.used: dict[str, int] = {}
        self.left = path.stat().st_size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path}: expected one data.pkl in the archive; found {len(pickles)}.")
        self.pickle, self.folder = pickles[0], pickles[0].removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        if order in archive.namelist() and self._entry(order, 16).strip() != b"little":
            raise CheckpointError(f"{path}: expected values in little-endian order; found another.")

    def _entry(self, name: str, most: int) -> bytes:
        try:
            info = self.archive.getinfo(name)
        except KeyError as error:
            raise CheckpointError(f"{self.path}: expected an entry {name} in the archive; found none.") from error
        # A compressed entry could say that it is as large as it likes, and entries could lie on top of each other.
        self.left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most or self.left < 0:
            raise CheckpointError(
                f"{self.path}, {name}: expected at most {most} bytes of its own, uncompressed; found {info.file_size}."
            )
        return self.archive.read(info)

    def read(self) -> Any:
        """What the instructions make."""
        text = self._entry(self.pickle, LARGEST_PICKLE)
        try:
            for instruction, argument, _ in pickletools.genops(text):
                self._do(instruction.name, argument)
            return self.stack.pop()
        except CheckpointError:
            raise
        # Instructions that do not fit together: an empty stack, nothing to append to, a wrong number of arguments.
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{self.path}, data.pkl: expected a whole pickle; found one that is damaged ({error})."[:300]
            ) from error

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _GIVEN:
            stack.append(argument)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(self._last(_TUPLES[name]))]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "APPENDS":
            parts = self._since_mark()
            stack[-1].extend(parts)
        elif name == "APPEND":
            part = stack.pop()
            stack[-1].append(part)
        elif name == "SETITEMS":
            self._put(self._since_mark())
        elif name == "SETITEM":
            pair = list(self._last(2))
            del stack[-2:]
            self._put(pair)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(*argument.split(" ")))
        elif name == "STACK_GLOBAL":
            of, module = stack.pop(), stack.pop()
            stack.append(_Name(self._text(module), self._text(of)))
        elif name == "BINPERSID":
            stack.append(self._storage(*stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise CheckpointError(f"{self.path}, data.pkl: expected plain values and tensors; found {name}.")

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("too few values")
        return self.stack[-count:]

    def _since_mark(self) -> list[Any]:
        at = self.marks.pop()
        if at > len(self.stack):
            raise IndexError("a mark past the values")
        parts = self.stack[at:]
        del self.stack[at:]
        return parts

    def _put(self, parts: list[Any]) -> None:
        if any(type(key) not in (str, int) for key in parts[::2]):
            raise CheckpointError(f"{self.path}, data.pkl: expected keys that are text or integers; found others.")
        self.stack[-1].update(zip(parts[::2], parts[1::2], strict=True))

    def _text(self, value: Any) -> str:
        if type(value) is not str:
            raise TypeError("a name that is no text")
        return value

    def _storage(self, what: Any, kind: Any, key: Any, place: Any, size: Any) -> _Storage:
        if type(kind) is not _Name or kind.module != "torch" or kind.name not in STORAGES:
            found = kind if type(kind) is _Name else f"a {type(kind).__name__}"
            known = ", ".join(STORAGES)
            raise CheckpointError(f"{self.path}, data.pkl: expected a storage of torch, one of {known}; found {found}.")
        if type(size) is not int or size < 0:
            raise TypeError("a storage without a size")
        return _Storage(STORAGES[kind.name], self._text(key), size)

    def _called(self, function: Any, arguments: Any) -> Any:
        known = function if type(function) is _Name else None
        if known == _ORDERED and len(arguments) == 0:
            return {}
        # A tuple as it is: of a list, each call would make a copy, and a small file could call many times.
        if known == _SIZE and len(arguments) == 1 and type(arguments[0]) is tuple:
            return arguments[0]
        if known == _PARAMETER and type(arguments[0]) is np.ndarray:
            return arguments[0]
        # The last of seven says that the values are to be negated or conjugated.
        if known == _TENSOR and len(arguments) <= 6:
            return self._tensor(*arguments[:4])
        found = known or f"a {type(function).__name__}"
        raise CheckpointError(
            f"{self.path}, data.pkl: expected plain values and tensors; found a call of {found}, which could do "
            "anything and is not made."
        )

    def _tensor(self, storage: Any, start: Any, shape: Any, strides: Any) -> np.ndarray:
        if type(storage) is not _Storage or not (len(shape) == len(strides) <= MOST_AXES):
            raise TypeError("a tensor without values")
        if any(type(n) is not int or n < 0 for n in (start, *shape, *strides)):
            raise TypeError("a tensor without a shape")
        size, step = math.prod(shape), 1
        for n, stride in zip(reversed(shape), reversed(strides), strict=True):
            if size and n != 1 and stride != step:
                raise CheckpointError(
                    f"{self.path}: expected tensors whose rows follow each other; found strides {strides} of {shape}. "
                    "Save them with .contiguous()."
                )
            step *= n
        if start + size > storage.size:
            raise CheckpointError(f"{self.path}: expected a tensor within its storage; found {shape} from {start} on.")
        entry, width = f"{self.folder}data/{storage.key}", storage.dtype.itemsize
        if entry not in self.values:  # once, if several tensors are parts of it
            self.values[entry], self.used[entry] = self._entry(entry, storage.size * width), 0
        self.used[entry] += size
        if len(self.values[entry]) != storage.size * width or self.used[entry] > storage.size:
            found = f"{len(self.values[entry])}, for {self.used[entry]} values"
            raise CheckpointError(f"{self.path}, {entry}: expected {storage.size * width} bytes; found {found}.")
        return np.frombuffer(self.values[entry], storage.dtype, size, start * width).reshape(shape)
