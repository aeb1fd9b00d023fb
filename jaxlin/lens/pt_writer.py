"""Write torch's ``.pt`` files of plain values and tensors without PyTorch: see `jaxlin.lens.pt_reader`."""

import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from jaxlin.lens.pt_reader import STORAGE_DTYPES


def write_pt(file: BinaryIO, values: Mapping[str, Any]) -> None:
    """Write `values` as `torch.save` would; `torch.load` reads them, also with ``weights_only=True``.

    Args:
        file: an open file.
        values: strings, numbers, None, lists and dictionaries; arrays of the dtypes in `STORAGE_DTYPES` become tensors.
    """
    arrays: list[np.ndarray] = []
    pickle = b"\x80\x02" + _pickled(dict(values), arrays) + b"."
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The instructions that put `value` on the stack. Arrays are appended to `arrays`, for entries of their own."""
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
    kind = next(name for name, dtype in STORAGE_DTYPES.items() if dtype == value.dtype)
    strides = [stride // value.itemsize for stride in np.empty(value.shape, value.dtype).strides]
    arrays.append(value)
    key = _pickled(str(len(arrays) - 1), arrays)
    storage = b"(" + _pickled("storage", arrays) + f"ctorch\n{kind}\n".encode() + key
    storage += _pickled("cpu", arrays) + _pickled(value.size, arrays) + b"tQ"
    shapes = (b"(" + b"".join(_pickled(n, arrays) for n in axes) + b"t" for axes in (value.shape, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage + _pickled(0, arrays) + b"".join(shapes) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
