r"""GGUF's blocks, 32 or 256 values of a row with a scale in common, decoded as ggml means them.

$w = s\,(c - c_0) + m$ with a code $c$ of 2 to 8 bits for each value, and a scale $s$ and perhaps a minimum $m$ for each
part of a block. Codes are kept as `jaxlin.packed.codes` says, each of the float16 numbers of the blocks in an array of
its own, whose neighbours a loop over a row reads one after another, and the codes of scales as they are in the file.

The decoders agree with the ``gguf`` library bit for bit. In every product one factor has few enough bits that it is
exact, so no order of the operations can change a value.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Float16, Int, Shaped, UInt8

from jaxlin.packed.base import Packed
from jaxlin.packed.codes import codes_of_rows, computed_once, packed_codes, part_rows, unpacked_codes
from jaxlin.packed.ggml import LAYOUTS

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""The types that are plain floats."""

TYPES = (*FLOATS, *LAYOUTS)
"""The types that stay packed."""

Numbers = tuple[Float[Array, "*b n"], ...]
Codes = UInt8[Array, "*b n h"]
Scales = Float[Array, "*b n p"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks(Packed):
    """Rows of blocks. Of a stack, each layer may have its own type: files keep some in more bits.

    Attributes:
        codes: the parts of the codes, each ``[..., rows, bytes]``; the bytes of `FLOATS` in the first. A layer with
            fewer bytes than another is filled up with zeros.
        halves: the float16 numbers of the blocks of each row, each ``[..., out, blocks]``; likewise.
        scales: the codes of the scales of parts of the blocks of each row, ``[..., out, bytes]``; likewise.
        kind: which of `kinds` it is, ``[...]``.
        kinds: ggml's names of the types that occur.
        width: how many values a row has.
    """

    codes: tuple[Any, ...]
    halves: tuple[Any, ...]
    scales: Any
    kind: Any
    kinds: tuple[str, ...] = field(metadata={"static": True})
    width: int = field(metadata={"static": True})

    @classmethod
    def of(cls, raw: UInt8[np.ndarray, "o r"], kind: str, kinds: tuple[str, ...], width: int) -> "Blocks":
        """One matrix of a file, of type `kind`, of a stack whose layers have the types `kinds`."""
        codes, halves, scales = [raw], [], raw[:, :0]
        if kind not in FLOATS:
            layout = LAYOUTS[kind]
            codes = packed_codes(raw, width, layout.bits, layout.codes_of_rows)
            halves, scales = layout.halves_of_rows(raw), layout.scales_of_rows(raw)
        form = cls.form(len(raw), kinds, width)
        return cls(
            _all_filled_up(codes, form.codes),
            _all_filled_up(halves, form.halves),
            _filled_up(scales, form.scales),
            np.int32(kinds.index(kind)),
            kinds,
            width,
        )

    @classmethod
    def form(cls, rows: int, kinds: tuple[str, ...], width: int) -> "Blocks":
        """As many rows without their values."""
        codes, halves, scales = zip(*(_shapes(kind, rows, width) for kind in kinds), strict=True)
        return cls(
            tuple(_form(parts, np.uint8) for parts in itertools.zip_longest(*codes, fillvalue=(0, 0))),
            tuple(_form(parts, np.float16) for parts in itertools.zip_longest(*halves, fillvalue=(0, 0))),
            _form(scales, np.uint8),
            jax.ShapeDtypeStruct((), np.int32),
            kinds,
            width,
        )

    def unpack(self) -> Array:
        """The values in float32."""
        decoders = [functools.partial(_decoded, name, self.width) for name in self.kinds]
        if len(decoders) == 1:
            return decoders[0](*self._parts())
        kind = jnp.asarray(self.kind)
        return jax.lax.switch(kind, decoders, *self._parts()) if kind.ndim == 0 else jax.lax.map(Blocks.unpack, self)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        decoders = [functools.partial(_decoded, name, self.width, index=index) for name in self.kinds]
        return jax.lax.switch(jnp.asarray(self.kind), decoders, *self._parts())

    def is_finite(self) -> bool:
        """Whether the floats in its blocks are."""
        if np.ndim(self.kind):
            return all(jax.tree.map(operator.itemgetter(i), self).is_finite() for i in range(len(self.kind)))
        name = self.kinds[int(self.kind)]
        if name not in FLOATS:
            return all(bool(np.isfinite(numbers).all()) for numbers in self.halves)
        ((_, held), *_), _, (rows, _) = _shapes(name, len(self.scales), self.width)
        raw = np.ascontiguousarray(self.codes[0][:rows, :held])
        return bool(np.isfinite(raw.view(FLOATS[name])).all())

    def _parts(self) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
        return jax.tree.map(jnp.asarray, (self.codes, self.halves, self.scales))


Shape = tuple[int, int]


def _shapes(kind: str, rows: int, width: int) -> tuple[list[Shape], list[Shape], Shape]:
    """Those of the parts of the codes, of the numbers of blocks and of the codes of scales."""
    if kind in FLOATS:
        return [(rows, width * np.dtype(FLOATS[kind]).itemsize)], [], (rows, 0)
    layout, blocks = LAYOUTS[kind], width // LAYOUTS[kind].values
    codes = [(part_rows(rows, bits), width) for bits in layout.bits]
    return codes, [(rows, blocks)] * len(layout.halves), (rows, blocks * layout.scales[1])


def _form(shapes: Iterable[Shape], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array into which one of each of `shapes` fits."""
    high, wide = zip(*shapes, strict=True)
    return jax.ShapeDtypeStruct((max(high), max(wide)), dtype)


def _all_filled_up(parts: Sequence[np.ndarray], forms: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Also by whole parts, which another type has."""
    there = itertools.chain(parts, (np.zeros((0, 0), form.dtype) for form in forms[len(parts) :]))
    return tuple(map(_filled_up, there, forms))


def _filled_up(part: Shaped[np.ndarray, "r b"], form: Any) -> Shaped[np.ndarray, "s c"]:
    if part.shape == form.shape:
        return part
    return np.pad(part, [(0, size - there) for size, there in zip(form.shape, part.shape, strict=True)])


def _decoded(
    kind: str,
    width: int,
    codes: tuple[UInt8[Array, "*b _ _"], ...],
    halves: tuple[Float16[Array, "*b o _"], ...],
    scales: UInt8[Array, "*b o _"],
    index: Int[Array, " n"] | None = None,
) -> Float[Array, "*b r i"]:
    """The values of all rows, or of some of a single matrix; what a layer was filled up with is ignored."""
    rows = scales.shape[-2]
    of_codes, of_halves, (_, beside) = _shapes(kind, rows, width)
    parts = tuple(part[..., :high, :wide] for part, (high, wide) in zip(codes, of_codes, strict=False))
    if kind in FLOATS:
        raw = parts[0] if index is None else parts[0][index]
        values = raw.reshape(*raw.shape[:-1], width, -1)
        return jax.lax.bitcast_convert_type(values, FLOATS[kind]).astype(jnp.float32).reshape(*raw.shape[:-1], width)
    layout = LAYOUTS[kind]
    found = unpacked_codes(parts, layout.bits, rows) if index is None else codes_of_rows(parts, layout.bits, index)
    wanted = ... if index is None else index
    numbers = tuple(part[wanted, :wide].astype(jnp.float32) for part, (_, wide) in zip(halves, of_halves, strict=False))
    of_parts = scales[wanted, :beside]
    zero, decoded = SCALES[kind]
    scale, minimum = decoded(numbers, of_parts.reshape(*numbers[0].shape, -1))
    scale = _of_row(scale)
    values = scale * (found - zero).astype(jnp.float32).reshape(*scale.shape[:-1], -1)
    return (values if minimum is None else values + _of_row(minimum)).reshape(found.shape)


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
