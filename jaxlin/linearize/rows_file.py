"""Rows in a ``.npy`` file that is whole or not there, and what lies beside it until it is."""

import contextlib
import hashlib
import io
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import UNSUPPORTED, check_regular_file, error_reason, path_exists, write_atomically, write_lock
from jaxlin.common.strict_json import parse_object
from jaxlin.nn.sharding import said_by_first


class RowsFile:
    """``NAME.npy.partial`` and a note beside it, which says what it is of and has a checksum of each block of rows."""

    def __init__(self, out: Path, shape: tuple[int, ...], dtype: Any, identity: str) -> None:
        self.out, self.shape, self.dtype, self.done = out, shape, np.dtype(dtype), 0
        self.data, self.note = out.with_name(out.name + ".partial"), out.with_name(out.name + ".partial.json")
        self.header = _header(shape, self.dtype)
        self.row = math.prod(shape[1:]) * self.dtype.itemsize
        self.description = {"identity": identity, "shape": list(shape), "dtype": self.dtype.name}
        self.blocks: list[list[Any]] = []
        self.stack = contextlib.ExitStack()
        self.file: BinaryIO | None = None
        try:
            if jax.process_index() == 0:
                self._open()
        except Exception:
            self.stack.close()
            said_by_first(-1)
            raise
        self.done = said_by_first(self.done)
        if self.done < 0:
            raise JaxlinError(f"Output: {out} cannot be written; the error of process 0 says why.")

    def __enter__(self) -> "RowsFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _open(self) -> None:
        out = self.out
        if out.suffix != ".npy":
            raise JaxlinError(f"Output: expected a path that ends in .npy; found {out}.")
        self.stack.enter_context(write_lock(out))
        if path_exists(out):
            raise JaxlinError(f"Output: {out} is there already. Delete it or choose another path.")
        try:
            begun = path_exists(self.note) and path_exists(self.data)
            if begun:
                check_regular_file(self.data)
            self.file = self.stack.enter_context(self.data.open("r+b" if begun else "w+b"))
            if begun:
                self._continue(self.file)
            else:
                self._begin(self.file)
        except OSError as error:
            raise self._unwritten(error) from error

    def _begin(self, file: BinaryIO) -> None:
        """Write the header, and take all of the room now: a disk that is full says so before hours of work."""
        size = len(self.header) + self.shape[0] * self.row
        try:
            file.write(self.header)
            file.flush()
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            file.truncate(size)
        except OSError:
            self.data.unlink(missing_ok=True)
            raise
        self._say()

    def _continue(self, file: BinaryIO) -> None:
        """Go on after the blocks that are there as they were written."""
        try:
            note = parse_object(self.note.read_bytes())
            blocks = note["blocks"]
            same = {key: note[key] for key in self.description} == self.description
            self.done = _rows_of(blocks)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged("a note of the rows that are there") from error
        if not same:
            raise JaxlinError(
                f"Output: {self.data} was begun with another prompt, model, site, rule or dtype. "
                "Delete it or choose another path."
            )
        size = len(self.header) + self.shape[0] * self.row
        if self.done > self.shape[0]:
            raise self._damaged(f"at most {self.shape[0]} rows, not {self.done}")
        if file.seek(0, os.SEEK_END) != size:
            raise self._damaged(f"{size} bytes, not {file.tell()}")
        file.seek(0)
        if file.read(len(self.header)) != self.header:
            raise self._damaged("the header of such an array")
        self.done = 0
        for rows, checksum in blocks:
            if _checksum(file.read(rows * self.row)) != checksum:
                left = f"{self.done} of {self.shape[0]} rows are as they were written"
                warnings.warn(f"{self.data}: {left}; the others are computed again.", stacklevel=6)
                break
            self.blocks.append([rows, checksum])
            self.done += rows

    def _damaged(self, expected: str) -> JaxlinError:
        return JaxlinError(
            f"Output: {self.data} is damaged: expected {expected}. Delete it, and the same call begins again."
        )

    def _unwritten(self, error: OSError) -> JaxlinError:
        return JaxlinError(f"Output: {self.out} cannot be written: {error_reason(error)}.")

    def _say(self) -> None:
        text = json.dumps({**self.description, "blocks": self.blocks})
        write_atomically(self.note, lambda fresh: fresh.write_text(text))

    def write(self, start: int, rows: jax.Array) -> None:
        """Put `rows` in place, then say that they are there."""
        values = np.ascontiguousarray(rows)  # in every process, so that none runs ahead of the one that writes
        self.done = start + len(values)
        if self.file is not None:
            content = values.tobytes()
            try:
                self.file.seek(len(self.header) + start * self.row)
                self.file.write(content)
                self.file.flush()
            except OSError as error:
                raise self._unwritten(error) from error
            self.blocks.append([len(values), _checksum(content)])
            self._say()

    def finish(self) -> np.ndarray:
        """Give the file its name and open it for reading."""
        if self.file is not None:
            self.file.close()
            try:
                os.replace(self.data, self.out)
            except OSError as error:
                raise self._unwritten(error) from error
            self.note.unlink(missing_ok=True)
        said_by_first(self.done)
        return np.load(self.out, mmap_mode="r")

    @property
    def hint(self) -> str:
        """What an interruption leaves."""
        return f"{self.done} of {self.shape[0]} rows are in {self.data}: the same call goes on from there."


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What a ``.npy`` file of such an array begins with."""
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _rows_of(blocks: Any) -> int:
    """How many rows the blocks of a note have.

    Raises:
        ValueError: no blocks.
    """
    if not isinstance(blocks, list) or not all(
        isinstance(each, list)
        and len(each) == 2
        and type(each[0]) is int
        and 0 < each[0] < 2**31
        and isinstance(each[1], str)
        for each in blocks
    ):
        raise ValueError("no list of blocks")
    return sum(rows for rows, _ in blocks)


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
