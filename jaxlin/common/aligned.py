"""Memory that a CPU device takes over without a copy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

ALIGNMENT = 64
"""Bytes at which it has to begin."""


def aligned(shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "..."]:
    """An array of anything. Written, it is given to `jax.device_put` with ``may_alias=True``."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def read_aligned(path: Path, start: int, size: int) -> UInt8[np.ndarray, " size"]:
    """The `size` bytes of a file from `start` on; fewer where it ends before.

    Read, not mapped: the pages of a mapped file would be held beside what is made of them.
    """
    found = aligned((size,), np.uint8)
    with path.open("rb") as file:
        file.seek(start)
        return found[: file.readinto(found.data)]
