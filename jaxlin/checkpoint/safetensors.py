"""One safetensors file: a header read strictly, and tensors that are read on demand.

Format: https://huggingface.co/docs/safetensors/index#format. Eight bytes give the length of a JSON header, which gives
the dtype, shape and place of every tensor; the tensors fill the rest of the file without gap or overlap.

The header is parsed here and then again by the safetensors library, so that a file which either refuses is refused. The
values are read here, because the library reads no float8 into NumPy.
"""

import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlin.common.arrays import read_aligned
from jaxlin.common.errors import CheckpointError
from jaxlin.common.files import check_regular_file
from jaxlin.common.printable import quoted
from jaxlin.common.strict_json import parse_object

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "C64": np.complex64,
    }.items()
}
"""The dtypes that are read, by the names of the format; those of less than one byte are not."""

FLOATS = tuple(DTYPES[name] for name in ("F64", "F32", "F16", "BF16"))
"""The dtypes of weights that are not quantised."""

MAX_AXES = 32
"""The axes that a tensor may have: the bound of the first NumPy."""

MAX_HEADER_BYTES = 100_000_000
"""The bound of the safetensors library: a longer header is damaged or hostile."""


class Entry(NamedTuple):
    """The entry of one tensor in the header; `start` and `stop` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """One file, whose header is checked when it is opened, and whose tensors are read on demand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_regular_file(path)
        try:
            with path.open("rb") as file:
                self._entries = _header(file)
            with safe_open(path, framework="numpy") as checked:
                checked.keys()
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: expected a whole safetensors file; found one that cannot be read ({error})."[:400]
                + " It is truncated or damaged: download it again."
            ) from error

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as the format names it."""
        return self._entries[name].dtype

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, in its stored dtype."""
        return self.read_slice(name, ())

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, with a slice for each axis; trailing axes may be left out.

        Only the span of the file from the first to the last element of the slices is read, as far as the slices of
        leading axes bound it.
        """
        dtype, shape, start, _ = self._entries[name]
        kind = DTYPES[dtype]
        index = index + (slice(None),) * (len(shape) - len(index))
        # The span is contiguous as long as every axis before the one sliced has a single element.
        narrowed, span = list(index), list(shape)
        for axis, (part, size) in enumerate(zip(index, shape, strict=True)):
            elements = range(size)[part]
            ends = sorted((elements[0], elements[-1])) if elements else (0, -1)
            low, high = ends[0], ends[1] + 1
            start += low * math.prod(shape[axis + 1 :]) * kind.itemsize
            span[axis] = high - low
            stop = elements.stop - low if elements.step > 0 else None
            narrowed[axis] = slice(elements.start - low, stop, elements.step) if elements else slice(0, 0)
            if span[axis] > 1:
                break
        count = math.prod(span)
        try:
            values = read_aligned(self.path, start, count * kind.itemsize)
        except OSError as error:
            raise CheckpointError(f"{self.path}, tensor {name}: cannot be read: {error.strerror}.") from error
        if values.size != count * kind.itemsize:
            raise CheckpointError(f"{self.path}, tensor {name}: the file became shorter while it was open.")
        return values.view(kind).reshape(span)[(*narrowed, ...)]


def _header(file: BinaryIO) -> dict[str, Entry]:
    """Parse the header of a file, and check that its tensors fill the rest.

    Raises:
        ValueError: the header is damaged; the message says where.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"a header of {length} bytes in a file of {size} bytes")
    try:
        header = parse_object(file.read(length))
    except ValueError as error:
        raise ValueError(f"a header that is not a JSON object: {error}") from error
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ValueError("a __metadata__ that does not map strings to strings")
    entries = {name: _entry(name, fields, 8 + length, size) for name, fields in header.items()}
    place = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != place:
            raise ValueError(f"tensor {name} at byte {entry.start}; the one before it ends at {place}")
        place = entry.stop
    if place != size:
        raise ValueError(f"tensors that end at byte {place} of {size}")
    return entries


def _entry(name: str, fields: Any, base: int, size: int) -> Entry:
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise ValueError(f"tensor {name} without dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name} of dtype {quoted(dtype)}; expected one of {', '.join(DTYPES)}")
    for numbers in (shape, offsets):
        # A bool is an int in Python, but not in the format.
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"tensor {name} with shape {quoted(shape)} and data_offsets {quoted(offsets)}")
    if len(shape) > MAX_AXES:
        raise ValueError(f"tensor {name} of {len(shape)} axes; {MAX_AXES} are possible")
    # Only a tensor without values could have a longer axis, and a loop along it would take forever.
    if any(n > size for n in shape):
        raise ValueError(f"tensor {name} of shape {quoted(shape)}, an axis longer than the {size} bytes of the file")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != expected:
        raise ValueError(
            f"tensor {name} of {dtype} {quoted(shape)}, {expected} bytes, at data_offsets {quoted(offsets)}"
        )
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])
