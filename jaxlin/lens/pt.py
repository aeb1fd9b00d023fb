"""torch's ``.pt`` files of plain values and tensors, read without unpickling and written without torch.

Such a file is an uncompressed zip archive of a pickle, ``NAME/data.pkl``, and of one entry of raw values for each
storage, ``NAME/data/KEY``. A pickle is a program: here its instructions are read as data, and of those that name or
call something only the few that make up a tensor are known. Everything else is refused.

Format: ``torch/serialization.py``, and ``pickletools`` of the standard library for the instructions.
"""

import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxlin.errors import CheckpointError

LARGEST_PICKLE = 2**24
"""Bytes of the pickle, which has no values of tensors in it."""

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
}
"""torch's names of the kinds of storage that are read."""


class _Name(NamedTuple):
    """What an instruction names by module and name, such as ``torch HalfStorage``."""

    module: str
    name: str


class _Storage(NamedTuple):
    """The raw values that a tensor is made of: `size` of `dtype` in the entry `key`."""

    dtype: np.dtype[Any]
    key: str
    size: int


_MARK: Any = object()
_TENSOR = _Name("torch._utils", "_rebuild_tensor_v2")
_ORDERED = _Name("collections", "OrderedDict")

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_GIVEN = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pt(path: Path) -> dict[str, Any]:
    """The dictionary in `path`: strings, numbers, lists and dictionaries, and tensors as arrays.

    Raises:
        CheckpointError: no such file, not what `torch.save` writes of such values, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = _Reader(archive, path).read()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path}: expected a zip archive, as torch.save writes; found none ({error}).") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a dictionary; found a {type(found).__name__}.")
    return found


class _Reader:
    """One open archive."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.path = archive, path
        self.values: dict[str, bytes] = {}
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
        # A compressed entry could say that it is as large as it likes.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise CheckpointError(
                f"{self.path}, {name}: expected at most {most} bytes, uncompressed; found {info.file_size}."
            )
        return self.archive.read(info)

    def read(self) -> Any:
        """What the instructions make."""
        text = self._entry(self.pickle, LARGEST_PICKLE)
        stack, memo = [], {}
        try:
            for instruction, argument, _ in pickletools.genops(text):
                self._do(instruction.name, argument, stack, memo)
            return stack.pop()
        except CheckpointError:
            raise
        # Instructions that do not fit together: an empty stack, an unhashable key, a wrong number of arguments.
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{self.path}, data.pkl: expected a whole pickle; found {error}.") from error

    def _do(self, name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _GIVEN:
            stack.append(argument)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name == "APPENDS":
            parts = _since_mark(stack)
            stack[-1].extend(parts)
        elif name == "APPEND":
            part = stack.pop()
            stack[-1].append(part)
        elif name == "SETITEMS":
            parts = _since_mark(stack)
            stack[-1].update(zip(parts[::2], parts[1::2], strict=True))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(*argument.split(" ")))
        elif name == "STACK_GLOBAL":
            of, module = stack.pop(), stack.pop()
            stack.append(_Name(module, of))
        elif name == "BINPERSID":
            stack.append(self._storage(*stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise CheckpointError(f"{self.path}, data.pkl: expected plain values and tensors; found {name}.")

    def _storage(self, what: str, kind: _Name, key: str, place: str, size: int) -> _Storage:
        if what != "storage" or not isinstance(kind, _Name) or kind.module != "torch" or kind.name not in STORAGES:
            known = ", ".join(STORAGES)
            raise CheckpointError(f"{self.path}, data.pkl: expected a storage of torch, one of {known}; found {kind}.")
        return _Storage(STORAGES[kind.name], key, size)

    def _called(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if function == _ORDERED:
            return dict(*arguments)
        if function != _TENSOR:
            raise CheckpointError(
                f"{self.path}, data.pkl: expected plain values and tensors; found a call of {function}, which could do "
                "anything and is not made."
            )
        return self._tensor(*arguments[:4])

    def _tensor(self, storage: _Storage, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape, dtype=object))
        in_order = [int(np.prod(shape[axis + 1 :], dtype=object)) for axis in range(len(shape))]
        whole = all(type(n) is int and n >= 0 for n in (start, storage.size, *shape))
        if not whole or start + size > storage.size:
            raise CheckpointError(f"{self.path}: expected a tensor within its storage; found {shape} from {start} on.")
        if size and any(s != o for s, o, n in zip(strides, in_order, shape, strict=True) if n != 1):
            raise CheckpointError(
                f"{self.path}: expected tensors whose rows follow each other; found strides {strides} of {shape}. "
                "Save them with .contiguous()."
            )
        entry, width = f"{self.folder}data/{storage.key}", storage.dtype.itemsize
        if entry not in self.values:  # once, however many tensors share it
            self.values[entry] = self._entry(entry, storage.size * width)
        if len(self.values[entry]) != storage.size * width:
            found = len(self.values[entry])
            raise CheckpointError(f"{self.path}, {entry}: expected {storage.size * width} bytes; found {found}.")
        return np.frombuffer(self.values[entry], storage.dtype, size, start * width).reshape(shape)


def _since_mark(stack: list[Any]) -> list[Any]:
    at = max(i for i, value in enumerate(stack) if value is _MARK)
    parts = stack[at + 1 :]
    del stack[at:]
    return parts


def write_pt(file: BinaryIO, values: Mapping[str, Any]) -> None:
    """`values` as `torch.save` would write them; `torch.load` reads them, with ``weights_only=True`` too.

    Args:
        file: where to.
        values: strings, numbers, None, lists and dictionaries, and arrays of the dtypes of `STORAGES` as tensors.
    """
    arrays: list[np.ndarray] = []
    text = b"\x80\x02" + _pickled(dict(values), arrays) + b"."
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The instructions that put `value` on the stack; arrays are put aside for entries of their own."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        signed = value.to_bytes(8, "little", signed=True)
        return b"\x8a\x08" + signed
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode("utf-8")
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, list | tuple):
        return b"](" + b"".join(_pickled(each, arrays) for each in value) + b"e"
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_pickled(each, arrays) for pair in value.items() for each in pair) + b"u"
    assert isinstance(value, np.ndarray)
    kind = next(name for name, dtype in STORAGES.items() if dtype == value.dtype)
    strides = [stride // value.itemsize for stride in np.empty(value.shape, value.dtype).strides]
    arrays.append(value)
    key = _pickled(str(len(arrays) - 1), arrays)
    storage = b"(" + _pickled("storage", arrays) + f"ctorch\n{kind}\n".encode() + key
    storage += _pickled("cpu", arrays) + _pickled(value.size, arrays) + b"tQ"
    shapes = (b"(" + b"".join(_pickled(n, arrays) for n in axes) + b"t" for axes in (value.shape, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage + _pickled(0, arrays) + b"".join(shapes) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
