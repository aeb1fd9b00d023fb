"""Rows written block by block to a ``.npy`` file, which appears once it is complete and survives interruptions."""

import contextlib
import io
import math
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import jax
import numpy as np

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import (
    UNSUPPORTED,
    PartialFile,
    check_regular_file,
    checksum,
    error_reason,
    path_exists,
    resume_hint,
    write_atomically,
    write_lock,
)
from jaxlin.nn.sharding import broadcast_from_first


class RowsFile:
    """The file ``NAME.npy.partial``, and ``NAME.npy.partial.json`` with a checksum of each block of rows in it."""

    def __init__(self, out: Path, shape: tuple[int, ...], dtype: Any, identity: str) -> None:
        self.shape, self.dtype, self.done = shape, np.dtype(dtype), 0
        description = {"identity": identity, "shape": list(shape), "dtype": self.dtype.name}
        self.partial = PartialFile(out, "Output", description, "prompt, model, site, rule or dtype")
        self.record = out.with_name(f"{self.partial.path.name}.json")
        self.header = _header(shape, self.dtype)
        self.row_size = math.prod(shape[1:]) * self.dtype.itemsize
        self.size = len(self.header) + shape[0] * self.row_size
        self.blocks: list[list[Any]] = []
        self.stack = contextlib.ExitStack()
        self.file: BinaryIO | None = None
        try:
            if jax.process_index() == 0:
                self._open()
        except Exception:
            self.stack.close()
            broadcast_from_first(-1)
            raise
        self.done = broadcast_from_first(self.done)
        if self.done < 0:
            raise JaxlinError(f"Output: {out} cannot be written; the error of process 0 says why.")

    def __enter__(self) -> "RowsFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _open(self) -> None:
        out, data = self.partial.out, self.partial.path
        if out.suffix != ".npy":
            raise JaxlinError(f"Output: expected a path that ends in .npy; found {out}.")
        self.stack.enter_context(write_lock(out))
        if path_exists(out):
            raise JaxlinError(f"Output: {out} is there already. Delete it or choose another path.")
        try:
            is_begun = path_exists(self.record) and path_exists(data)
            if is_begun:
                check_regular_file(data)
            self.file = self.stack.enter_context(data.open("r+b" if is_begun else "w+b"))
            if is_begun:
                self._continue(self.file)
            else:
                self._begin(self.file)
        except OSError as error:
            raise self._write_error(error) from error

    def _begin(self, file: BinaryIO) -> None:
        """Write the header and reserve the space of all rows, so that a full disk fails now and not after hours."""
        try:
            file.write(self.header)
            file.flush()
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self.size)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            file.truncate(self.size)
        except OSError:
            self.partial.path.unlink(missing_ok=True)
            raise
        self._write_record()

    def _continue(self, file: BinaryIO) -> None:
        """Continue after the leading blocks whose checksums are right."""
        expected = "a note of the rows that are there"
        blocks = self.partial.progress(self.record.read_bytes(), expected).get("blocks")
        if not _are_blocks(blocks):
            raise self.partial.damage(expected)
        rows = sum(count for count, _ in blocks)
        if rows > self.shape[0]:
            raise self.partial.damage(f"at most {self.shape[0]} rows, not {rows}")
        if file.seek(0, os.SEEK_END) != self.size:
            raise self.partial.damage(f"{self.size} bytes, not {file.tell()}")
        file.seek(0)
        if file.read(len(self.header)) != self.header:
            raise self.partial.damage("the header of such an array")
        for count, expected_checksum in blocks:
            if checksum(file.read(count * self.row_size)) != expected_checksum:
                intact = f"{self.done} of {self.shape[0]} rows are as they were written"
                warnings.warn(f"{self.partial.path}: {intact}; the others are computed again.", stacklevel=7)
                break
            self.blocks.append([count, expected_checksum])
            self.done += count

    def _write_error(self, error: OSError) -> JaxlinError:
        return JaxlinError(f"Output: {self.partial.out} cannot be written: {error_reason(error)}.")

    def _write_record(self) -> None:
        text = self.partial.record(blocks=self.blocks)
        write_atomically(self.record, lambda path: path.write_text(text))

    def write(self, start: int, rows: jax.Array) -> None:
        """Write `rows` to their place in the file, then their checksum to the record."""
        values = np.ascontiguousarray(rows)  # in every process, so that all wait for each block
        self.done = start + len(values)
        if self.file is not None:
            content = values.tobytes()
            try:
                self.file.seek(len(self.header) + start * self.row_size)
                self.file.write(content)
                self.file.flush()
            except OSError as error:
                raise self._write_error(error) from error
            self.blocks.append([len(values), checksum(content)])
            self._write_record()

    def finish(self) -> np.ndarray:
        """Rename the complete file to ``NAME.npy`` and open it for reading."""
        if self.file is not None:
            self.file.close()
            try:
                os.replace(self.partial.path, self.partial.out)
            except OSError as error:
                raise self._write_error(error) from error
            self.record.unlink(missing_ok=True)
        broadcast_from_first(self.done)
        return np.load(self.partial.out, mmap_mode="r")

    @property
    def hint(self) -> str:
        """The hint for a user who interrupts the call."""
        return resume_hint(f"{self.done} of {self.shape[0]} rows are", self.partial.path)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The header of the ``.npy`` file of an array."""
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _are_blocks(value: Any) -> TypeGuard[list[tuple[int, str]]]:
    """Whether `value` is a list of blocks, each with its number of rows and its checksum."""
    return isinstance(value, list) and all(
        isinstance(block, list)
        and len(block) == 2
        and type(block[0]) is int
        and 0 < block[0] < 2**31
        and isinstance(block[1], str)
        for block in value
    )
