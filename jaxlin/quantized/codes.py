r"""Codes of few bits, several in a byte: laid out so that vector instructions take them apart.

In a file, a byte has the codes of neighbouring columns, which would have to be unpacked one by one. Here a byte has
codes of one column: with $b$ bits, those of the rows $r, r + 1, \dots, r + 8/b - 1$, the first in the lowest bits, so
that all bytes of a row are shifted alike. A code of 6 bits is stored as one of 4 and one of 2, in two arrays. No bit is
added, except for rows that fill up the last bytes.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

CHUNK = 2**18
"""How many codes a thread packs at a time: until they are packed, they take more memory than afterwards."""

WORKERS = min(8, os.cpu_count() or 1)

WORD = np.uint64
"""Eight bytes, which are shifted together. What moves from one byte into the next has to be masked away."""

Parts = tuple[Any, ...]
"""The bytes of all codes of a matrix: an array ``[..., ceil(out b / 8), in]`` for each of the `bits`, lowest first."""


def part_rows(rows: int, bits: int) -> int:
    """The rows of bytes that `rows` of codes take."""
    return -(-rows * bits // 8)


def packed_codes(
    raw: UInt8[np.ndarray, "o r"], width: int, bits: Sequence[int], codes: Callable[[np.ndarray], np.ndarray]
) -> list[UInt8[np.ndarray, "p i"]]:
    """The codes of a matrix as `Parts`, packed some rows at a time.

    Args:
        raw: the rows of a file.
        width: how many codes a row has.
        bits: the bits of a code, part by part.
        codes: gives the codes, ``[rows, width]``, of some rows of `raw`.
    """
    parts = [np.empty((part_rows(len(raw), count), width), np.uint8) for count in bits]
    step = max(1, CHUNK // width // 8) * 8
    word = WORD if width % 8 == 0 else np.uint8

    def pack(start: int) -> None:
        remaining = codes(raw[start : start + step])
        if len(remaining) % 8:
            remaining = np.pad(remaining, ((0, -len(remaining) % 8), (0, 0)))
        for part, count in zip(parts, bits, strict=True):
            is_last, codes_per_byte = part is parts[-1], 8 // count
            low = remaining if is_last else remaining & (2**count - 1)
            low = low.reshape(-1, codes_per_byte, width).view(word)
            packed = low[:, 0].copy()
            for k in range(1, codes_per_byte):
                packed |= low[:, k] << word(count * k)
            target = part[start * count // 8 :][: len(packed)]
            target[:] = packed.view(np.uint8)[: len(target)]
            remaining = remaining if is_last else remaining >> count

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(pack, range(0, len(raw), step)))
    return parts


def shifted_down(raw: UInt8[np.ndarray, "*b r"], shift: Any, bits: int) -> UInt8[np.ndarray, "*c r"]:
    """``(raw >> shift) & (2**bits - 1)`` of rows of a multiple of eight bytes; `shift` may have axes of its own."""
    words = np.ascontiguousarray(raw).view(WORD)
    return ((words >> np.asarray(shift, WORD)) & WORD((2**bits - 1) * 0x0101010101010101)).view(np.uint8)


def unpacked_codes(parts: Parts, bits: Sequence[int], rows: int) -> Int[Array, "*b o i"]:
    """All codes of `rows` rows."""

    def codes_of(part: Array, count: int) -> Array:
        shifts = np.arange(0, 8, count, dtype=np.int32).reshape(*(1,) * (part.ndim - 1), -1, 1)
        codes = (part.astype(jnp.int32)[..., None, :] >> shifts) & (2**count - 1)
        return codes.reshape(*part.shape[:-2], -1, part.shape[-1])[..., :rows, :]

    return _joined([codes_of(part, count) for part, count in zip(parts, bits, strict=True)], bits)


def codes_of_rows(parts: Parts, bits: Sequence[int], index: Int[Array, " n"]) -> Int[Array, "n i"]:
    """The codes of some rows of a single matrix."""

    def codes_of(part: Array, count: int) -> Array:
        codes_per_byte = 8 // count
        shifts = count * (index % codes_per_byte).astype(jnp.int32)
        return (part[index // codes_per_byte].astype(jnp.int32) >> shifts[:, None]) & (2**count - 1)

    return _joined([codes_of(part, count) for part, count in zip(parts, bits, strict=True)], bits)


def rows_of_part(part: UInt8[np.ndarray, "p i"], bits: int, index: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "q i"]:
    """The bytes of the codes of some rows, in this order, wherever they are within a byte."""
    codes_per_byte = 8 // bits
    packed = np.zeros((part_rows(len(index), bits), part.shape[1]), np.uint8)
    for k in range(codes_per_byte):
        rows = index[k::codes_per_byte]
        shifts = (bits * (rows % codes_per_byte)).astype(np.uint8)[:, None]
        packed[: len(rows)] |= ((part[rows // codes_per_byte] >> shifts) & np.uint8(2**bits - 1)) << np.uint8(bits * k)
    return packed


def _joined(parts: Sequence[Array], bits: Sequence[int]) -> Array:
    codes, shift = parts[0], bits[0]
    for part, count in zip(parts[1:], bits[1:], strict=True):
        codes, shift = codes | (part << shift), shift + count
    return codes


def computed_once(scales: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """`scales`, each computed once, instead of once for each value of its block.

    XLA fuses what is elementwise into the loop that uses it, but not a reduction: this one takes the larger of two
    copies.
    """
    return jnp.max(jnp.broadcast_to(scales, (2, *scales.shape)), axis=0)


def table_values(table: Shaped[Array, "*b n"], codes: Int[Array, "*b o i"]) -> Shaped[Array, "*b o i"]:
    """``table[codes]``, where `n` is a power of two.

    Each bit of the codes selects half of the table. A CPU does this for many codes at once, and a look-up one by one.
    """
    options = [table[..., k, None, None] for k in range(table.shape[-1])]
    bit = 0
    while len(options) > 1:
        odd = (codes >> bit) & 1 != 0
        options = [jnp.where(odd, high, low) for low, high in zip(options[::2], options[1::2], strict=True)]
        bit += 1
    return options[0]
