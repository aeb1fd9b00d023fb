r"""GGUF's blocks, 32 or 256 values of a row with a scale in common, decoded as ggml means them.

$w = s\,(c - c_0) + m$ with a code $c$ of 2 to 8 bits for each value, and a scale $s$ and perhaps a minimum $m$ for each
part of a block. Codes are kept as `jaxlin.quantized.codes` says, each of the float16 numbers of the blocks in an array
of its own, whose neighbours a loop over a row reads one after another, and the codes of scales as they are in the file.

The decoders agree with the ``gguf`` library bit for bit. In every product one factor has few enough bits that it is
exact, so no order of the operations can change a value.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Int, Shaped, UInt8

from jaxlin.quantized.base import PackedMatrix
from jaxlin.quantized.codes import codes_of_rows, computed_once, packed_codes, part_rows, unpacked_codes
from jaxlin.quantized.ggml import LAYOUTS

Numbers = tuple[Float[Array, "*b n"], ...]
Codes = UInt8[Array, "*b n h"]
Scales = Float[Array, "*b n p"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GGUFBlocks(PackedMatrix):
    """Rows of blocks of one type.

    Attributes:
        codes: the parts of the codes, each ``[..., bytes, in]``.
        halves: the float16 numbers of the blocks of each row, each ``[..., out, blocks]``.
        scales: the codes of the scales of parts of the blocks of each row, ``[..., out, bytes]``.
        kind: ggml's name of the type.
    """

    codes: tuple[Any, ...]
    halves: tuple[Any, ...]
    scales: Any
    kind: str = field(metadata={"static": True})

    @classmethod
    def of(cls, raw: UInt8[np.ndarray, "o r"], kind: str, width: int) -> "GGUFBlocks":
        """One matrix of a file, of type `kind`, whose rows have `width` values."""
        layout = LAYOUTS[kind]
        codes = packed_codes(raw, width, layout.bits, layout.codes_of_rows)
        return cls(tuple(codes), tuple(layout.halves_of_rows(raw)), layout.scales_of_rows(raw), kind)

    @classmethod
    def form(cls, rows: int, kind: str, width: int) -> "GGUFBlocks":
        """As many rows without their values."""
        layout, blocks = LAYOUTS[kind], width // LAYOUTS[kind].values
        leaf = jax.ShapeDtypeStruct
        return cls(
            tuple(leaf((part_rows(rows, bits), width), np.uint8) for bits in layout.bits),
            tuple(leaf((rows, blocks), np.float16) for _ in layout.halves),
            leaf((rows, blocks * layout.scales[1]), np.uint8),
            kind,
        )

    def unpack(self) -> Array:
        """The values in float32."""
        codes, halves, scales = self._parts()
        return self._values(unpacked_codes(codes, LAYOUTS[self.kind].bits, scales.shape[-2]), halves, scales)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        codes, halves, scales = self._parts()
        of_rows = codes_of_rows(codes, LAYOUTS[self.kind].bits, index)
        return self._values(of_rows, tuple(half[index] for half in halves), scales[index])

    def is_finite(self) -> bool:
        """Whether the float16 numbers of its blocks are."""
        return all(bool(np.isfinite(numbers).all()) for numbers in self.halves)

    def _parts(self) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
        return jax.tree.map(jnp.asarray, (self.codes, self.halves, self.scales))

    def _values(
        self, codes: Int[Array, "*b r i"], halves: tuple[Float16[Array, "*b r n"], ...], scales: UInt8[Array, "*b r h"]
    ) -> Float[Array, "*b r i"]:
        numbers = tuple(half.astype(jnp.float32) for half in halves)
        zero, decoded = SCALES[self.kind]
        scale, minimum = decoded(numbers, scales.reshape(*numbers[0].shape, -1))
        scale = _of_row(scale)
        values = scale * (codes - zero).astype(jnp.float32).reshape(*scale.shape[:-1], -1)
        return (values if minimum is None else values + _of_row(minimum)).reshape(codes.shape)


def _of_row(scales: Scales) -> Float[Array, "*b m 1"]:
    """Those of all parts of all blocks of a row."""
    return scales.reshape(*scales.shape[:-2], -1, 1)


def _plain(numbers: Numbers, codes: Codes) -> tuple[Scales, Scales | None]:
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
    """8 parts; a scale and a minimum of 6 bits each lie in 12 bytes."""
    first, second, third = (codes[..., start : start + 4] for start in (0, 4, 8))
    scales = jnp.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = jnp.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    scale, minimum = numbers
    return _of_parts(scale, scales), _of_parts(-minimum, minima)


def _q6_k(numbers: Numbers, codes: Codes) -> tuple[Scales, None]:
    """16 parts, whose scales are int8."""
    return _of_parts(numbers[0], jax.lax.bitcast_convert_type(codes, jnp.int8)), None


def _of_parts(scale: Float[Array, "*b n"], codes: Shaped[Array, "*b n p"]) -> Scales:
    """The scales of parts of blocks: that of the block times codes of theirs."""
    return computed_once(scale[..., None] * codes.astype(jnp.float32))


SCALES: dict[str, tuple[int, Callable[[Numbers, Codes], tuple[Scales, Scales | None]]]] = {
    "Q4_0": (8, _plain),
    "Q4_1": (0, _plain),
    "Q5_0": (16, _plain),
    "Q5_1": (0, _plain),
    "Q8_0": (128, _plain),
    "Q2_K": (0, _q2_k),
    "Q3_K": (4, _q3_k),
    "Q4_K": (0, _q4_k),
    "Q5_K": (0, _q4_k),
    "Q6_K": (32, _q6_k),
}
"""By type, the code $c_0$, and what makes $s$ and $m$ of each part of a block from its numbers and codes of scales."""
