"""A dense matrix from its rows, computed block by block, in memory or in a file that appears once it is complete."""

import contextlib
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlin.common.annotations import accepting, is_integer
from jaxlin.common.arguments import checked
from jaxlin.common.devices import physical_memory
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.common.progress import progress_bar
from jaxlin.linearize.rows_file import RowsFile
from jaxlin.nn.sharding import gather

MIN_VECTORS = 512
"""How many vectors, counted over rows and tokens, make it worthwhile to read, and perhaps unpack, a layer's weights."""


class BlockSizes(NamedTuple):
    """The sizes of a block of rows that are fastest on a kind of device.

    Attributes:
        activation: the bytes of one hidden activation over the block. On a CPU it should stay in the cache between the
            products and the elementwise work; elsewhere it should occupy all cores, and leave room for the weights.
        dense_map: the largest dense map, in bytes, whose rows are all computed together if that saves operations.
    """

    activation: int
    dense_map: int


def block_sizes() -> BlockSizes:
    """The sizes for the default device."""
    if jax.default_backend() == "cpu":
        return BlockSizes(8 * 2**20, 256 * 2**20)
    memory = physical_memory()
    return BlockSizes(min(512 * 2**20, memory // 128), min(2**30, memory // 64))


def default_block(rows: int, tokens: int, token_bytes: int) -> int:
    """How many rows to compute together, in equal blocks, if a token of one takes `token_bytes` in the widest layer."""
    largest = min(rows, max(block_sizes().activation // (tokens * token_bytes), MIN_VECTORS // tokens, 1))
    return math.ceil(rows / math.ceil(rows / largest))


def _is_dtype(value: Any) -> bool:
    try:
        return bool(jnp.issubdtype(jnp.dtype(value), jnp.number))
    except (TypeError, ValueError):
        return False


@checked
def dense_from_rows(
    rmatvec: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    dtype: Annotated[Any, accepting("a dtype", _is_dtype)],
    *,
    block: int,
    out: Path | None,
    identity: str,
    progress: bool,
) -> jax.Array | np.ndarray:
    """The rows of a matrix, from `rmatvec` of the rows of the identity.

    Args:
        rmatvec: a function from ``[b, rows]`` to ``[b, ...]`` that maps each row by itself.
        shape: the shape of the result; its first axis counts the rows.
        dtype: the dtype of the result.
        block: how many rows to compute together.
        out: a ``.npy`` file to write; None to return an array in memory. The first of several processes writes it, and
            all of them must be able to read it.
        identity: a string that identifies the matrix; a partial file is continued only if its identity is the same.
        progress: whether to show a bar.

    Raises:
        JaxlinError: `shape` has no axes; or `out` exists, is not a ``.npy`` path, cannot be written, or was begun with
            another matrix.
    """
    if not shape:
        raise JaxlinError("Shape: expected an axis of rows or more; found none.")
    rows = shape[0]
    if not is_integer(block) or block < 1:
        raise JaxlinError(f"Block: expected an integer of at least 1 row; found {quoted(block)}.")
    result = _InMemory(rows) if out is None else RowsFile(out, shape, dtype, identity)
    bar = progress_bar(show=progress, total=rows, initial=result.done, unit="row", desc="J")
    with bar, result:
        try:
            for start in range(result.done, rows, block):
                count = min(block, rows - start)
                # All blocks have one shape, so that they are compiled once: rows past the end of the identity are zero.
                units = jax.nn.one_hot(jnp.arange(start, start + block), rows, dtype=dtype)
                result.write(start, gather(rmatvec(units))[:count])
                bar.update(count)
        except KeyboardInterrupt as interruption:
            if isinstance(result, RowsFile):
                interruption.add_note(result.hint)
            raise
        return result.finish()


def npy_path(out: Any) -> Path:
    """`out` as a path.

    Raises:
        JaxlinError: `out` is not a path.
    """
    if not isinstance(out, str | os.PathLike):
        raise JaxlinError(f"Out: expected the path of a .npy file; found {quoted(out)}.")
    return Path(out)


class _InMemory(contextlib.nullcontext[None]):
    """One array that is filled in place: blocks concatenated at the end would be in memory twice."""

    done = 0

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def write(self, start: int, rows: jax.Array) -> None:
        """Write `rows` to the array, which the first block allocates."""
        if start > 0:
            self.array = _update_rows(self.array, rows, start)
        elif missing := self.rows - len(rows):
            self.array = jnp.pad(rows, [(0, missing), *[(0, 0)] * (rows.ndim - 1)])
        else:
            self.array = rows

    def finish(self) -> jax.Array:
        """The array."""
        return self.array


@functools.partial(jax.jit, donate_argnums=0)
def _update_rows(array: jax.Array, rows: jax.Array, start: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, rows, start, axis=0)
