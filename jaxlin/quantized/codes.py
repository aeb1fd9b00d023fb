r"""Codes of few bits, several in a byte: laid out so that vector instructions take them apart.

A file keeps codes that are neighbours in a row in one byte. Pulled apart there, they come out one by one. Here a byte
holds codes of one column: of $b$ bits, those of the rows $r, r + 1, \dots, r + 8/b - 1$, the first in the lowest bits.
All bytes of a row are then shifted alike. A code of 6 bits is one of 4 and one of 2, in two arrays. No bit is added but
for rows that fill up the last bytes.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

CHUNK, WORKERS = 2**18, min(8, os.cpu_count() or 1)
"""Codes that are packed at a time, and by how many threads: on the way they take more room than in the end."""

WORD = np.uint64
"""Eight codes in bytes of their own are shifted as one, as long as no bit leaves its byte or is masked away."""

Parts = tuple[Any, ...]
"""The bytes of all codes of a matrix: an array ``[..., ceil(out b / 8), in]`` for each of the `bits`, lowest first."""


def part_rows(rows: int, bits: int) -> int:
    """The rows of bytes that `rows` of codes take."""
    return -(-rows * bits // 8)


def packed_codes(
    raw: UInt8[np.ndarray, "o r"], width: int, bits: Sequence[int], codes: Callable[[np.ndarray], np.ndarray]
) -> list[UInt8[np.ndarray, "p i"]]:
    """`Parts` of the codes, ``[o, i]``, that `codes` finds in rows of `raw`, some rows at a time."""
    parts = [np.empty((part_rows(len(raw), count), width), np.uint8) for count in bits]
    step = max(1, CHUNK // width // 8) * 8
    word = WORD if width % 8 == 0 else np.uint8

    def pack(start: int) -> None:
        rest = codes(raw[start : start + step])
        rest = np.pad(rest, ((0, -len(rest) % 8), (0, 0))) if len(rest) % 8 else rest
        for part, count in zip(parts, bits, strict=True):
            each = 8 // count
            low = (rest if part is parts[-1] else rest & (2**count - 1)).reshape(-1, each, width).view(word)
            packed = low[:, 0].copy()
            for k in range(1, each):
                packed |= low[:, k] << word(count * k)
            place = part[start * count // 8 :][: len(packed)]
            place[:] = packed.view(np.uint8)[: len(place)]
            rest = rest >> count if part is not parts[-1] else rest

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(pack, range(0, len(raw), step)))
    return parts


def shifted_down(raw: UInt8[np.ndarray, "*b r"], shift: Any, bits: int) -> UInt8[np.ndarray, "*c r"]:
    """``(raw >> shift) & (2**bits - 1)`` of rows of a multiple of eight bytes; `shift` may have axes of its own."""
    words = np.ascontiguousarray(raw).view(WORD)
    return ((words >> np.asarray(shift, WORD)) & WORD((2**bits - 1) * 0x0101010101010101)).view(np.uint8)


def unpacked_codes(parts: Parts, bits: Sequence[int], rows: int) -> Int[Array, "*b o i"]:
    """All codes of `rows` rows."""

    def of(part: Array, count: int) -> Array:
        shifts = np.arange(0, 8, count, dtype=np.int32).reshape(*(1,) * (part.ndim - 1), -1, 1)
        codes = (part.astype(jnp.int32)[..., None, :] >> shifts) & (2**count - 1)
        return codes.reshape(*part.shape[:-2], -1, part.shape[-1])[..., :rows, :]

    return _joined([of(part, count) for part, count in zip(parts, bits, strict=True)], bits)


def codes_of_rows(parts: Parts, bits: Sequence[int], index: Int[Array, " n"]) -> Int[Array, "n i"]:
    """The codes of some rows of a single matrix."""

    def of(part: Array, count: int) -> Array:
        each = 8 // count
        shifts = count * (index % each).astype(jnp.int32)
        return (part[index // each].astype(jnp.int32) >> shifts[:, None]) & (2**count - 1)

    return _joined([of(part, count) for part, count in zip(parts, bits, strict=True)], bits)


def rows_of_part(part: UInt8[np.ndarray, "p i"], bits: int, start: int, stop: int) -> UInt8[np.ndarray, "q i"]:
    """The bytes of the codes of some rows, wherever they begin within a byte."""
    first, shift = start * bits // 8, start * bits % 8
    rows = part[first : first + part_rows(stop - start, bits) + 1]
    if shift:  # a byte then ends with what the next one begins with
        rows = (rows >> shift) | np.pad(rows[1:] << (8 - shift), ((0, 1), (0, 0)))
    return rows[: part_rows(stop - start, bits)]


def _joined(parts: Sequence[Array], bits: Sequence[int]) -> Array:
    codes, shift = parts[0], bits[0]
    for part, count in zip(parts[1:], bits[1:], strict=True):
        codes, shift = codes | (part << shift), shift + count
    return codes


def computed_once(scales: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """`scales`, each of them computed once and not again for each value of its block.

    XLA puts all that is elementwise into the loop that uses it. A reduction it leaves apart: this one takes the larger
    of two copies.
    """
    return jnp.max(jnp.broadcast_to(scales, (2, *scales.shape)), axis=0)


def chosen(table: Shaped[Array, "*b n"], codes: Int[Array, "*b o i"]) -> Shaped[Array, "*b o i"]:
    """``table[codes]``, `n` a power of two: selections bit by bit, where a CPU would look up one by one."""
    options = [table[..., k, None, None] for k in range(table.shape[-1])]
    bit = 0
    while len(options) > 1:
        odd = (codes >> bit) & 1 != 0
        options = [jnp.where(odd, high, low) for low, high in zip(options[::2], options[1::2], strict=True)]
        bit += 1
    return options[0]
