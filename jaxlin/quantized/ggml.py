"""How ggml lays out its blocks: which of their bytes hold the codes of values, and which the scales.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, UInt8

from jaxlin.quantized.codes import shifted_down

Bytes = UInt8[np.ndarray, "..."]

NONE = (0, 0)
"""No codes of scales: a block has one part."""


class Layout(NamedTuple):
    """A block of one type.

    Attributes:
        values: how many values it stands for.
        bits: the bits of a value's code, in the parts that `jaxlin.quantized.codes` keeps it in.
        halves: where its float16 numbers begin: a scale and perhaps a minimum.
        scales: where the codes of the scales of its parts begin, and how many bytes they take.
        codes: the codes of a block, ``[..., values]``, from its bytes, ``[..., size]``.
    """

    values: int
    bits: tuple[int, ...]
    halves: tuple[int, ...]
    scales: tuple[int, int]
    codes: Callable[[Bytes], Bytes]

    @property
    def size(self) -> int:
        """The bytes of a block."""
        return self.values * sum(self.bits) // 8 + 2 * len(self.halves) + self.scales[1]

    def codes_of_rows(self, raw: UInt8[np.ndarray, "r b"]) -> UInt8[np.ndarray, "r i"]:
        """The codes of rows of blocks."""
        return self.codes(self._blocks(raw)).reshape(len(raw), -1)

    def halves_of_rows(self, raw: UInt8[np.ndarray, "r b"]) -> list[Float16[np.ndarray, "r n"]]:
        """Each of the float16 numbers of rows of blocks."""
        blocks = self._blocks(raw)
        return [blocks[..., i : i + 2].copy().view("<f2")[..., 0] for i in self.halves]

    def scales_of_rows(self, raw: UInt8[np.ndarray, "r b"]) -> UInt8[np.ndarray, "r h"]:
        """The codes of the scales of rows of blocks, as they are in the file."""
        start, count = self.scales
        # A copy even of no bytes: a view would keep all of `raw`.
        return self._blocks(raw)[..., start : start + count].copy().reshape(len(raw), -1)

    def _blocks(self, raw: UInt8[np.ndarray, "r b"]) -> UInt8[np.ndarray, "r n s"]:
        return raw.reshape(len(raw), raw.shape[1] // self.size, self.size)


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
    kind: Layout(values, bits, halves, scales, codes)
    for kind, values, bits, halves, scales, codes in (
        ("Q4_0", 32, (4,), (0,), NONE, lambda raw: spread(raw[..., 2:], 4, 16)),
        ("Q4_1", 32, (4,), (0, 2), NONE, lambda raw: spread(raw[..., 4:], 4, 16)),
        ("Q5_0", 32, (4, 1), (0,), NONE, lambda raw: spread(raw[..., 6:], 4, 16) | _bits(raw[..., 2:6]) << 4),
        ("Q5_1", 32, (4, 1), (0, 2), NONE, lambda raw: spread(raw[..., 8:], 4, 16) | _bits(raw[..., 4:8]) << 4),
        # int8, counted from its least value on.
        ("Q8_0", 32, (8,), (0,), NONE, lambda raw: raw[..., 2:] ^ 128),
        ("Q2_K", 256, (2,), (80, 82), (0, 16), lambda raw: spread(raw[..., 16:80], 2, 32)),
        ("Q3_K", 256, (2, 1), (108,), (96, 12), lambda raw: _joined(raw[..., 32:96], 2, 32, raw[..., :32], 1)),
        ("Q4_K", 256, (4,), (0, 2), (4, 12), lambda raw: spread(raw[..., 16:], 4, 32)),
        ("Q5_K", 256, (4, 1), (0, 2), (4, 12), lambda raw: _joined(raw[..., 48:], 4, 32, raw[..., 16:48], 1)),
        ("Q6_K", 256, (4, 2), (208,), (192, 16), lambda raw: _joined(raw[..., :128], 4, 64, raw[..., 128:192], 2)),
    )
}
"""By ggml's name of the type."""
