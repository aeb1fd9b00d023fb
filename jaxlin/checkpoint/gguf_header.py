"""The header of a GGUF file, read within bounds: metadata as plain values, and the place of each tensor.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is compared with the size of
the file before it is used. The reader of the `gguf` library does not do so: an array length with one wrong bit makes it
loop until memory ends. It also makes a NumPy array of every token, which takes seconds for a vocabulary.
"""

import math
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from jaxlin.common.printable import quoted

VERSIONS = (2, 3)
MAX_AXES = 4
"""GGML_MAX_DIMS: ggml has no tensor of more axes."""

_SCALARS: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}


class GGUFEntry(NamedTuple):
    """The entry of one tensor in the header: its type, its shape, slowest axis first, and its bytes in the file."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(data: memoryview) -> tuple[dict[str, Any], dict[str, GGUFEntry]]:
    """The metadata and the tensors of a whole GGUF file.

    Raises:
        ValueError: the header is damaged; the message says where.
    """
    return _Cursor(data).header()


class _Cursor:
    """A position in the file, from which values are read one after another."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def header(self) -> tuple[dict[str, Any], dict[str, GGUFEntry]]:
        magic = bytes(self._take(min(4, len(self._data))))
        if magic != b"GGUF":
            raise ValueError(f"expected the magic bytes GGUF; found {magic!r}")
        version = self._number("<I")
        if version not in VERSIONS:
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise ValueError(f"version {version}" + (", a big-endian file, which is not read" if big_endian else ""))
        tensors, pairs = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            if key in metadata:
                raise ValueError(f"the key {key} is given twice")
            metadata[key] = self._value(self._number("<I"))
        entries: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int]] = {}
        for _ in range(tensors):
            name = self._string()
            if name in entries:
                raise ValueError(f"tensor {name} is given twice")
            entries[name] = self._tensor(name)
        # Arrays become Python lists last, so that a wrong length is noticed before it takes memory.
        return {key: _plain(value) for key, value in metadata.items()}, self._placed(metadata, entries)

    def _take(self, size: int) -> memoryview:
        if size > len(self._data) - self._position:
            raise ValueError(f"it ends within the {size} bytes from byte {self._position} on")
        self._position += size
        return self._data[self._position - size : self._position]

    def _number(self, code: str) -> int:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _string(self) -> str:
        start = self._position
        try:
            return str(self._take(self._number("<Q")), "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the string at byte {start} is not UTF-8") from None

    def _value(self, code: int, depth: int = 0) -> Any:
        try:
            kind = GGUFValueType(code)
        except ValueError:
            raise ValueError(f"a value of unknown type {code} before byte {self._position}") from None
        if kind is GGUFValueType.STRING:
            return self._string()
        if kind is not GGUFValueType.ARRAY:
            return self._numbers(kind, 1)[0]
        if depth == MAX_AXES:
            raise ValueError(f"arrays nested more than {MAX_AXES} deep before byte {self._position}")
        code, length = self._number("<I"), self._number("<Q")
        if code in _SCALARS:
            return self._numbers(GGUFValueType(code), length)
        # A string takes at least 8 bytes, an array 12.
        if length * 8 > len(self._data) - self._position:
            raise ValueError(f"an array of {length} values before byte {self._position}, more than the file can hold")
        return [self._value(code, depth + 1) for _ in range(length)]

    def _numbers(self, kind: GGUFValueType, count: int) -> np.ndarray:
        dtype = _SCALARS[kind]
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _tensor(self, name: str) -> tuple[GGMLQuantizationType, tuple[int, ...], int]:
        axes = self._number("<I")
        if not 1 <= axes <= MAX_AXES:
            raise ValueError(f"tensor {name} of {axes} axes; 1 to {MAX_AXES} are possible")
        shape = tuple(self._number("<Q") for _ in range(axes))[::-1]
        code, offset = self._number("<I"), self._number("<Q")
        try:
            kind = GGMLQuantizationType(code)
            block, _ = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise ValueError(f"tensor {name} of type {code}, which gguf {_version()} does not know") from None
        if 0 in shape or shape[-1] % block:
            raise ValueError(f"tensor {name} of {kind.name}, blocks of {block}, and of shape {shape}")
        return kind, shape, offset

    def _placed(
        self, metadata: dict[str, Any], entries: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int]]
    ) -> dict[str, GGUFEntry]:
        """The tensors at their places in the file, none of them past its end or overlapping another."""
        alignment = _plain(metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT))
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment {quoted(alignment)}, which is no power of two")
        base = -(-self._position // alignment) * alignment
        tensors: dict[str, GGUFEntry] = {}
        end = base
        for name, (kind, shape, offset) in sorted(entries.items(), key=lambda item: item[1][2]):
            block, block_size = gguf.GGML_QUANT_SIZES[kind]
            size = math.prod(shape) // block * block_size
            start = base + offset
            if offset % alignment or start < end:
                raise ValueError(f"tensor {name} at byte {start}; expected a multiple of {alignment} from {end} on")
            end = start + size
            if end > len(self._data):
                raise ValueError(f"tensor {name} ends at byte {end} of {len(self._data)}")
            tensors[name] = GGUFEntry(kind, shape, start, size)
        return tensors


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
