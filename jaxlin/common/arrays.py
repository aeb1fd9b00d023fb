"""Arrays: how results print them, the relative size of errors, and memory that JAX can use without a copy."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped, UInt8

T = TypeVar("T")
Leaf = Any
"""A field of a pytree: an array or a number, or the tracer, shape or batch that JAX puts there while it transforms."""

ALIGNMENT = 64
"""Bytes of which an address must be a multiple for a CPU device to use the memory without copying it."""


class ShapesRepr:
    """The base of a dataclass with ``repr=False``; it prints each array as its shape, such as ``[3, 4]``."""

    def __repr__(self) -> str:
        instance: Any = self
        shown = (f"{field.name}={_shape_or_repr(getattr(self, field.name))}" for field in fields(instance))
        return f"{type(self).__name__}({', '.join(shown)})"


def _shape_or_repr(value: Any) -> str:
    shape = getattr(value, "shape", ())  # numbers, and what JAX puts in the place of a field, may have none
    return str(list(shape)) if shape else repr(value)


def to_list(array: Any) -> Any:
    """An array as nested lists, or a number, with None for NaN, which JSON has no number for."""
    values = np.asarray(array)
    if values.dtype.kind == "f" and np.isnan(values).any():
        values = values.astype(object)
        values[np.isnan(values.astype(float))] = None
    return values.tolist()


def relative_error(error: Any, scale: Any) -> Any:
    """`error / scale`; 0 where the error is 0, even if the scale is 0 too, and infinite where only the scale is 0."""
    if isinstance(error, jax.Array) or isinstance(scale, jax.Array):
        return error / jnp.where(error == 0, 1, scale)
    with np.errstate(divide="ignore"):
        return np.asarray(error) / np.where(np.asarray(error) == 0, 1, scale)


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "..."]:
    """An uninitialised array that `jax.device_put` can take over with ``may_alias=True`` once it is filled."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def read_aligned(path: Path, start: int, size: int) -> UInt8[np.ndarray, " size"]:
    """The `size` bytes of a file from `start` on, or fewer where the file ends before that.

    They are read and not mapped: the pages of a mapped file would stay in memory beside the arrays made of them.
    """
    content = aligned_empty((size,), np.uint8)
    with path.open("rb") as file:
        file.seek(start)
        return content[: file.readinto(content.data)]


def equal_by_identity(result: type[T]) -> type[T]:
    """Let results of this class be equal to themselves alone: a comparison of arrays has no one truth value."""
    for name in ("__eq__", "__ne__", "__hash__"):
        setattr(result, name, getattr(object, name))
    return result
