"""A dense matrix from its rows: block by block, to memory or to a file that is whole or not there."""

import contextlib
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlin.common.devices import physical_memory
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.common.progress import progress_bar
from jaxlin.linearize.rows_file import RowsFile
from jaxlin.nn.sharding import gather
from jaxlin.nn.sites import is_integer

MIN_VECTORS = 512
"""Vectors, of all rows and tokens, for which it pays to read and perhaps unpack a layer's weights."""


class BlockSizes(NamedTuple):
    """How large a block of rows is best on a kind of device.

    Attributes:
        activation: bytes of one hidden activation over the block. On a CPU it should stay in the cache between the
            products and the elementwise work; elsewhere it should occupy all units, and leave room for the weights.
        dense_map: bytes of a dense map up to which all its rows are best computed together, if that saves operations.
    """

    activation: int
    dense_map: int


CPU = BlockSizes(8 * 2**20, 256 * 2**20)


def block_sizes() -> BlockSizes:
    """Those of the present device."""
    if jax.default_backend() == "cpu":
        return CPU
    there = physical_memory()
    return BlockSizes(min(512 * 2**20, there // 128), min(2**30, there // 64))


def default_block(rows: int, tokens: int, token_bytes: int) -> int:
    """How many rows to compute together when a token of one takes as many bytes in the widest layer.

    Blocks are of one size.
    """
    largest = min(rows, max(block_sizes().activation // (tokens * token_bytes), MIN_VECTORS // tokens, 1))
    return math.ceil(rows / math.ceil(rows / largest))


def dense_from_rows(
    pull: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    dtype: Any,
    *,
    block: int,
    out: Path | None,
    identity: str,
    progress: bool,
) -> jax.Array | np.ndarray:
    """Apply `pull` to the rows of the identity, `block` at a time.

    Args:
        pull: maps ``[b, rows]`` to ``[b, ...]``, row by row.
        shape: the shape of the result; its first axis counts the rows.
        dtype: of the result.
        block: rows at a time.
        out: a ``.npy`` file to write; None to keep the result in memory. Of several processes the first writes it,
            where all of them can read it.
        identity: says what is computed: a partial file is continued only if it is the same.
        progress: show a bar.

    Raises:
        JaxlinError: `out` exists, is not a ``.npy`` path, cannot be written, or is begun with something else.
    """
    rows = shape[0]
    if not is_integer(block) or block < 1:
        raise JaxlinError(f"Block: expected an integer of at least 1 row; found {quoted(block)}.")
    result = _InMemory(rows) if out is None else RowsFile(out, shape, dtype, identity)
    bar = progress_bar(show=progress, total=rows, initial=result.done, unit="row", desc="J")
    with bar, result:
        try:
            for start in range(result.done, rows, block):
                count = min(block, rows - start)
                # One shape for all blocks: past the end the rows of the identity are zero.
                units = jax.nn.one_hot(jnp.arange(start, start + block), rows, dtype=dtype)
                result.write(start, gather(pull(units))[:count])
                bar.update(count)
        except KeyboardInterrupt as interruption:
            if isinstance(result, RowsFile):
                interruption.add_note(result.hint)
            raise
        return result.finish()


def path_of(out: Any) -> Path:
    """`out`, if it names a file.

    Raises:
        JaxlinError: it is no path.
    """
    if not isinstance(out, str | os.PathLike):
        raise JaxlinError(f"Out: expected the path of a .npy file; found {quoted(out)}.")
    return Path(out)


class _InMemory(contextlib.nullcontext[None]):
    """One array, filled in its place: blocks that are put together at the end are in memory twice."""

    done = 0

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def write(self, start: int, rows: jax.Array) -> None:
        """Put `rows` in place; the first make the array."""
        if start > 0:
            self.whole = _placed(self.whole, rows, start)
        elif missing := self.rows - len(rows):
            self.whole = jnp.pad(rows, [(0, missing), *[(0, 0)] * (rows.ndim - 1)])
        else:
            self.whole = rows

    def finish(self) -> jax.Array:
        """The array."""
        return self.whole


@functools.partial(jax.jit, donate_argnums=0)
def _placed(whole: jax.Array, rows: jax.Array, start: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, rows, start, axis=0)
