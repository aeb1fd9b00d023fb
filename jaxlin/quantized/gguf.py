r"""GGUF's blocks, 32 or 256 values of a row with a scale in common, decoded as ggml decodes them.

$w = s\,(c - c_0) + m$ with a code $c$ of 2 to 8 bits for each value, and a scale $s$ and perhaps a minimum $m$ for each
part of a block. Each type is one row of `LAYOUTS`. Codes are stored as `jaxlin.quantized.codes` describes. Each of the
float16 numbers of the blocks has an array of its own, so that a loop over a row reads neighbours, and the codes of
scales stay as they are in the file.

The decoders agree with the ``gguf`` library bit for bit, which decodes on the host and cannot be part of a program. In
every product one factor has few enough bits for the product to be exact, so that no order of the operations changes a
value. Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Int, Shaped, UInt8

from jaxlin.quantized.codes import (
    codes_of_rows,
    computed_once,
    packed_codes,
    part_rows,
    rows_of_part,
    shifted_down,
    unpacked_codes,
)
from jaxlin.quantized.matrix import PackedMatrix

Bytes = UInt8[np.ndarray, "..."]
Numbers = tuple[Float[Array, "*b n"], ...]
Codes = UInt8[Array, "*b n h"]
Scales = Float[Array, "*b n p"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GGUFBlocks(PackedMatrix):
    """Rows of blocks of one type.

    Attributes:
        codes: the parts of the codes, each ``[..., bytes, in]``.
        numbers: the float16 numbers of the blocks of each row, each ``[..., out, blocks]``.
        scales: the codes of the scales of parts of the blocks of each row, ``[..., out, bytes]``.
        kind: ggml's name of the type.
    """

    codes: tuple[Any, ...]
    numbers: tuple[Any, ...]
    scales: Any
    kind: str = field(metadata={"static": True})

    @classmethod
    def from_bytes(cls, raw: UInt8[np.ndarray, "o r"], kind: str, width: int) -> "GGUFBlocks":
        """One matrix of a file, of type `kind`, whose rows have `width` values."""
        layout = LAYOUTS[kind]
        codes = packed_codes(raw, width, layout.bits, layout.codes_of_rows)
        return cls(tuple(codes), tuple(layout.numbers_of_rows(raw)), layout.scales_of_rows(raw), kind)

    @classmethod
    def abstract(cls, shape: tuple[int, int], kind: str) -> "GGUFBlocks":
        """A matrix of type `kind` without its values."""
        array, layout, (rows, width) = jax.ShapeDtypeStruct, LAYOUTS[kind], shape
        blocks = width // layout.values
        return cls(
            tuple(array((part_rows(rows, bits), width), np.uint8) for bits in layout.bits),
            tuple(array((rows, blocks), np.float16) for _ in layout.numbers),
            array((rows, blocks * layout.scales[1]), np.uint8),
            kind,
        )

    def unpack(self) -> Array:
        """The values in float32."""
        codes, numbers, scales = self._arrays()
        return self._values(unpacked_codes(codes, LAYOUTS[self.kind].bits, scales.shape[-2]), numbers, scales)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        codes, numbers, scales = self._arrays()
        row_codes = codes_of_rows(codes, LAYOUTS[self.kind].bits, index)
        return self._values(row_codes, tuple(number[index] for number in numbers), scales[index])

    def rows(self, index: Int[np.ndarray, " n"]) -> "GGUFBlocks":
        """Some rows, packed."""
        parts = zip(self.codes, LAYOUTS[self.kind].bits, strict=True)
        codes = tuple(rows_of_part(part, bits, index) for part, bits in parts)
        return type(self)(codes, tuple(number[index] for number in self.numbers), self.scales[index], self.kind)

    def is_finite(self) -> bool:
        """Whether the float16 numbers of its blocks are finite."""
        return all(bool(np.isfinite(number).all()) for number in self.numbers)

    def _arrays(self) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
        return jax.tree.map(jnp.asarray, (self.codes, self.numbers, self.scales))

    def _values(
        self, codes: Int[Array, "*b r i"], numbers: tuple[Float16[Array, "*b r n"], ...], scales: UInt8[Array, "*b r h"]
    ) -> Float[Array, "*b r i"]:
        layout = LAYOUTS[self.kind]
        widened = tuple(number.astype(jnp.float32) for number in numbers)
        scale, minimum = layout.decode_scales(widened, scales.reshape(*widened[0].shape, -1))
        scale = _by_row(scale)
        values = scale * (codes - layout.zero).astype(jnp.float32).reshape(*scale.shape[:-1], -1)
        return (values if minimum is None else values + _by_row(minimum)).reshape(codes.shape)


def _by_row(scales: Scales) -> Float[Array, "*b m 1"]:
    """The scales of all parts of all blocks of a row, on one axis."""
    return scales.reshape(*scales.shape[:-2], -1, 1)


class Layout(NamedTuple):
    """A block of one type.

    Attributes:
        values: how many values it stands for.
        bits: the bits of a value's code, in the parts that `jaxlin.quantized.codes` stores it in.
        numbers: where its float16 numbers begin: a scale and perhaps a minimum.
        scales: where the codes of the scales of its parts begin, and how many bytes they take.
        codes: the codes of a block, ``[..., values]``, from its bytes, ``[..., size]``.
        zero: the code $c_0$.
        decode_scales: $s$ and $m$ of each part of a block, from its float16 numbers and its codes of scales.
    """

    values: int
    bits: tuple[int, ...]
    numbers: tuple[int, ...]
    scales: tuple[int, int]
    codes: Callable[[Bytes], Bytes]
    zero: int
    decode_scales: Callable[[Numbers, Codes], tuple[Scales, Scales | None]]

    @property
    def size(self) -> int:
        """The bytes of a block."""
        return self.values * sum(self.bits) // 8 + 2 * len(self.numbers) + self.scales[1]

    def codes_of_rows(self, raw: UInt8[np.ndarray, "r b"]) -> UInt8[np.ndarray, "r i"]:
        """The codes of rows of blocks."""
        return self.codes(self._blocks(raw)).reshape(len(raw), -1)

    def numbers_of_rows(self, raw: UInt8[np.ndarray, "r b"]) -> list[Float16[np.ndarray, "r n"]]:
        """Each of the float16 numbers of rows of blocks."""
        blocks = self._blocks(raw)
        return [blocks[..., i : i + 2].copy().view("<f2")[..., 0] for i in self.numbers]

    def scales_of_rows(self, raw: UInt8[np.ndarray, "r b"]) -> UInt8[np.ndarray, "r h"]:
        """The codes of the scales of rows of blocks, as they are in the file."""
        start, count = self.scales
        # A copy, even where there are no bytes: a view would keep all of `raw` in memory.
        return self._blocks(raw)[..., start : start + count].copy().reshape(len(raw), -1)

    def _blocks(self, raw: UInt8[np.ndarray, "r b"]) -> UInt8[np.ndarray, "r n s"]:
        return raw.reshape(len(raw), raw.shape[1] // self.size, self.size)


def _spread(raw: Bytes, bits: int, run: int) -> Bytes:
    """The lowest `bits` of each of `run` bytes, then the next ones, up to the highest; so for every run of bytes."""
    runs = raw.reshape(*raw.shape[:-1], -1, 1, run)
    return shifted_down(runs, np.arange(0, 8, bits)[:, None], bits).reshape(*raw.shape[:-1], -1)


def _bits(raw: Bytes) -> Bytes:
    """The bits of a run of bytes, the lowest of the first byte first."""
    return np.unpackbits(raw, axis=-1, bitorder="little")


def _joined(low: Bytes, bits: int, run: int, high: Bytes, high_bits: int) -> Bytes:
    """Codes whose lowest `bits` are in some bytes, and their `high_bits` in others."""
    return _spread(low, bits, run) | _spread(high, high_bits, 32) << bits


def _one_part(numbers: Numbers, codes: Codes) -> tuple[Scales, Scales | None]:
    """One part: the scale and the minimum of the block."""
    scale, *minimum = (number[..., None] for number in numbers)
    return scale, minimum[0] if minimum else None


def _q2_k(numbers: Numbers, codes: Codes) -> tuple[Scales, Scales]:
    """16 parts, whose scale and minimum have 4 bits each."""
    scale, minimum = numbers
    return _of_parts(scale, codes & 15), _of_parts(-minimum, codes >> 4)


def _q3_k(numbers: Numbers, codes: Codes) -> tuple[Scales, None]:
    """16 parts, whose scales have 6 bits: 4 in halves of 8 bytes, 2 in quarters of 4."""
    low = jnp.concatenate([codes[..., :8] & 15, codes[..., :8] >> 4], axis=-1)
    high = jnp.concatenate([(codes[..., 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return _of_parts(numbers[0], (low | (high << 4)).astype(jnp.int8) - 32), None


def _q4_k(numbers: Numbers, codes: Codes) -> tuple[Scales, Scales]:
    """8 parts, whose scales and minima of 6 bits each are in 12 bytes."""
    first, second, third = (codes[..., start : start + 4] for start in (0, 4, 8))
    scales = jnp.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = jnp.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    scale, minimum = numbers
    return _of_parts(scale, scales), _of_parts(-minimum, minima)


def _q6_k(numbers: Numbers, codes: Codes) -> tuple[Scales, None]:
    """16 parts, whose scales are int8."""
    return _of_parts(numbers[0], jax.lax.bitcast_convert_type(codes, jnp.int8)), None


def _of_parts(scale: Float[Array, "*b n"], codes: Shaped[Array, "*b n p"]) -> Scales:
    """The scales of the parts of blocks: the block's scale times their codes."""
    return computed_once(scale[..., None] * codes.astype(jnp.float32))


NONE = (0, 0)
"""No codes of scales: a block has one part."""

LAYOUTS = {
    "Q4_0": Layout(32, (4,), (0,), NONE, lambda raw: _spread(raw[..., 2:], 4, 16), 8, _one_part),
    "Q4_1": Layout(32, (4,), (0, 2), NONE, lambda raw: _spread(raw[..., 4:], 4, 16), 0, _one_part),
    "Q5_0": Layout(
        *(32, (4, 1), (0,), NONE, lambda raw: _spread(raw[..., 6:], 4, 16) | _bits(raw[..., 2:6]) << 4, 16, _one_part)
    ),
    "Q5_1": Layout(
        *(32, (4, 1), (0, 2), NONE, lambda raw: _spread(raw[..., 8:], 4, 16) | _bits(raw[..., 4:8]) << 4, 0, _one_part)
    ),
    # int8, counted from its least value on.
    "Q8_0": Layout(32, (8,), (0,), NONE, lambda raw: raw[..., 2:] ^ 128, 128, _one_part),
    "Q2_K": Layout(256, (2,), (80, 82), (0, 16), lambda raw: _spread(raw[..., 16:80], 2, 32), 0, _q2_k),
    "Q3_K": Layout(
        *(256, (2, 1), (108,), (96, 12), lambda raw: _joined(raw[..., 32:96], 2, 32, raw[..., :32], 1), 4, _q3_k)
    ),
    "Q4_K": Layout(256, (4,), (0, 2), (4, 12), lambda raw: _spread(raw[..., 16:], 4, 32), 0, _q4_k),
    "Q5_K": Layout(
        *(256, (4, 1), (0, 2), (4, 12), lambda raw: _joined(raw[..., 48:], 4, 32, raw[..., 16:48], 1), 0, _q4_k)
    ),
    "Q6_K": Layout(
        *(256, (4, 2), (208,), (192, 16), lambda raw: _joined(raw[..., :128], 4, 64, raw[..., 128:192], 2), 32, _q6_k)
    ),
}
"""By ggml's name of the type."""
