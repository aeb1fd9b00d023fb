"""How ggml lays out its blocks: which of their bytes hold the codes of values, and which the scales of blocks.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxlin.packed.codes import shifted_down

Bytes = UInt8[np.ndarray, "..."]


class Layout(NamedTuple):
    """A block of one type.

    Attributes:
        values: how many values it stands for.
        bits: the bits of a value's code, in the parts that `jaxlin.packed.codes` keeps it in.
        heads: the spans of bytes that hold no codes: together the head of the block.
        halves: where in the head float16 numbers begin.
        codes: the codes of a block, ``[..., values]``, from its bytes, ``[..., size]``.
    """

    values: int
    bits: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    halves: tuple[int, ...]
    codes: Callable[[Bytes], Bytes]

    @property
    def head(self) -> int:
        """The bytes of a head."""
        return sum(stop - start for start, stop in self.heads)

    @property
    def size(self) -> int:
        """The bytes of a block."""
        return self.values * sum(self.bits) // 8 + self.head

    def codes_of_rows(self, raw: UInt8[np.ndarray, "r b"]) -> UInt8[np.ndarray, "r i"]:
        """The codes of rows of blocks."""
        return self.codes(raw.reshape(len(raw), -1, self.size)).reshape(len(raw), -1)


def spread(raw: Bytes, bits: int, run: int) -> Bytes:
    """Of every `run` bytes the lowest `bits` of each, then the next ones, up to the highest."""
    runs = raw.reshape(*raw.shape[:-1], -1, 1, run)
    return shifted_down(runs, np.arange(0, 8, bits)[:, None], bits).reshape(*raw.shape[:-1], -1)


def _bits(raw: Bytes) -> Bytes:
    """The bits of a run of bytes, the lowest of the first byte first."""
    return np.unpackbits(raw, axis=-1, bitorder="little")


def _joined(low: Bytes, bits: int, run: int, high: Bytes, more: int) -> Bytes:
    """Codes whose lowest `bits` are in some bytes, and `more` in others."""
    return spread(low, bits, run) | spread(high, more, 32) << bits


LAYOUTS = {
    kind: Layout(values, bits, heads, halves, codes)
    for kind, values, bits, heads, halves, codes in (
        ("Q4_0", 32, (4,), ((0, 2),), (0,), lambda raw: spread(raw[..., 2:], 4, 16)),
        ("Q4_1", 32, (4,), ((0, 4),), (0, 2), lambda raw: spread(raw[..., 4:], 4, 16)),
        ("Q5_0", 32, (4, 1), ((0, 2),), (0,), lambda raw: spread(raw[..., 6:], 4, 16) | _bits(raw[..., 2:6]) << 4),
        ("Q5_1", 32, (4, 1), ((0, 4),), (0, 2), lambda raw: spread(raw[..., 8:], 4, 16) | _bits(raw[..., 4:8]) << 4),
        # int8, counted from its least value on.
        ("Q8_0", 32, (8,), ((0, 2),), (0,), lambda raw: raw[..., 2:] ^ 128),
        ("Q2_K", 256, (2,), ((0, 16), (80, 84)), (16, 18), lambda raw: spread(raw[..., 16:80], 2, 32)),
        ("Q3_K", 256, (2, 1), ((96, 110),), (12,), lambda raw: _joined(raw[..., 32:96], 2, 32, raw[..., :32], 1)),
        ("Q4_K", 256, (4,), ((0, 16),), (0, 2), lambda raw: spread(raw[..., 16:], 4, 32)),
        ("Q5_K", 256, (4, 1), ((0, 16),), (0, 2), lambda raw: _joined(raw[..., 48:], 4, 32, raw[..., 16:48], 1)),
        ("Q6_K", 256, (4, 2), ((192, 210),), (16,), lambda raw: _joined(raw[..., :128], 4, 64, raw[..., 128:192], 2)),
    )
}
"""By ggml's name of the type."""
