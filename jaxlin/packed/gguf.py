r"""GGUF's blocks, 32 or 256 values of a row with a scale in common, decoded as ggml means them.

$w = s\,(c - c_0) + m$ with a code $c$ of 2 to 8 bits for each value, and a scale $s$ and perhaps a minimum $m$ for each
part of a block. Codes are kept as `jaxlin.packed.codes` says, the rest of a block, its head, as it is in the file.

The decoders agree with the ``gguf`` library bit for bit. In every product one factor has few enough bits that it is
exact, so no order of the operations can change a value.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from jaxlin.packed.base import Packed
from jaxlin.packed.codes import codes_of_rows, computed_once, packed_codes, part_rows, unpacked_codes
from jaxlin.packed.ggml import LAYOUTS

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""The types that are plain floats."""

TYPES = (*FLOATS, *LAYOUTS)
"""The types that stay packed."""

Head = UInt8[Array, "*b n h"]
Scales = Float[Array, "*b n p"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks(Packed):
    """Rows of blocks. Of a stack, each layer may have its own type: files keep some in more bits.

    Attributes:
        codes: the parts of the codes, each ``[..., rows, bytes]``; the bytes of `FLOATS` in the first. A layer with
            fewer bytes than another is filled up with zeros.
        heads: the heads of the blocks of each row, ``[..., out, bytes]``; likewise.
        kind: which of `kinds` it is, ``[...]``.
        kinds: ggml's names of the types that occur.
        width: how many values a row has.
    """

    codes: tuple[Any, ...]
    heads: Any
    kind: Any
    kinds: tuple[str, ...] = field(metadata={"static": True})
    width: int = field(metadata={"static": True})

    @classmethod
    def of(cls, raw: UInt8[np.ndarray, "o r"], kind: str, kinds: tuple[str, ...], width: int) -> "Blocks":
        """One matrix of a file, of type `kind`, of a stack whose layers have the types `kinds`."""
        if kind in FLOATS:
            codes, heads = [raw], raw[:, :0]
        else:
            layout = LAYOUTS[kind]
            codes = packed_codes(raw, width, layout.bits, layout.codes_of_rows)
            blocks = raw.reshape(len(raw), -1, layout.size)
            head = [blocks[..., start:stop] for start, stop in layout.heads]
            heads = np.concatenate(head, axis=-1).reshape(len(raw), -1)
        form = cls.form(len(raw), kinds, width)
        codes += [raw[:0, :0]] * (len(form.codes) - len(codes))
        codes = tuple(_filled_up(part, to.shape) for part, to in zip(codes, form.codes, strict=True))
        return cls(codes, _filled_up(heads, form.heads.shape), np.int32(kinds.index(kind)), kinds, width)

    @classmethod
    def form(cls, rows: int, kinds: tuple[str, ...], width: int) -> "Blocks":
        """As many rows without their values."""
        shapes = [_shapes(kind, rows, width) for kind in kinds]
        codes = itertools.zip_longest(*(codes for codes, _ in shapes), fillvalue=(0, 0))
        heads = tuple(map(max, zip(*(heads for _, heads in shapes), strict=True)))
        largest = [tuple(map(max, zip(*part, strict=True))) for part in codes]
        form = functools.partial(jax.ShapeDtypeStruct, dtype=np.uint8)
        return cls(tuple(map(form, largest)), form(heads), jax.ShapeDtypeStruct((), np.int32), kinds, width)

    def unpack(self) -> Array:
        """The values in float32."""
        codes, heads, kind = jax.tree.map(jnp.asarray, (self.codes, self.heads, self.kind))
        decoders = [functools.partial(_decoded, name, self.width) for name in self.kinds]
        if len(decoders) == 1:
            return decoders[0](codes, heads)
        if kind.ndim == 0:
            return jax.lax.switch(kind, decoders, codes, heads)
        return jax.lax.map(lambda layer: jax.lax.switch(layer[0], decoders, *layer[1:]), (kind, codes, heads))

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        codes, heads = jax.tree.map(jnp.asarray, (self.codes, self.heads))
        decoders = [functools.partial(_decoded, name, self.width, index=index) for name in self.kinds]
        return jax.lax.switch(jnp.asarray(self.kind), decoders, codes, heads)

    def is_finite(self) -> bool:
        """Whether the floats in its blocks are."""
        name = self.kinds[int(self.kind)]
        ((_, held), *_), (_, beside) = _shapes(name, 1, self.width)
        if name in FLOATS:
            raw = np.ascontiguousarray(self.codes[0][: len(self.heads), :held])
            return bool(np.isfinite(raw.view(FLOATS[name])).all())
        layout = LAYOUTS[name]
        heads = self.heads[:, :beside].reshape(-1, layout.head)
        return all(np.isfinite(heads[:, i : i + 2].copy().view(np.float16)).all() for i in layout.halves)


def _shapes(kind: str, rows: int, width: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Those of the parts of the codes and of the heads."""
    if kind in FLOATS:
        return [(rows, width * np.dtype(FLOATS[kind]).itemsize)], (rows, 0)
    layout = LAYOUTS[kind]
    return [(part_rows(rows, bits), width) for bits in layout.bits], (rows, width // layout.values * layout.head)


def _filled_up(part: UInt8[np.ndarray, "r b"], shape: tuple[int, ...]) -> UInt8[np.ndarray, "s c"]:
    if part.shape == shape:
        return part
    return np.pad(part, [(0, size - there) for size, there in zip(shape, part.shape, strict=True)])


def _decoded(
    kind: str,
    width: int,
    codes: tuple[UInt8[Array, "*b _ _"], ...],
    heads: UInt8[Array, "*b o _"],
    index: Int[Array, " n"] | None = None,
) -> Float[Array, "*b r i"]:
    """The values of all rows, or of some of a single matrix; what a layer was filled up with is ignored."""
    rows = heads.shape[-2]
    shapes, (_, beside) = _shapes(kind, rows, width)
    parts = tuple(part[..., :high, :wide] for part, (high, wide) in zip(codes, shapes, strict=False))
    heads = heads[..., :beside] if index is None else heads[index, :beside]
    if kind in FLOATS:
        raw = parts[0] if index is None else parts[0][index]
        values = raw.reshape(*raw.shape[:-1], width, -1)
        return jax.lax.bitcast_convert_type(values, FLOATS[kind]).astype(jnp.float32).reshape(*raw.shape[:-1], width)
    layout = LAYOUTS[kind]
    zero, scales = SCALES[kind]
    found = unpacked_codes(parts, layout.bits, rows) if index is None else codes_of_rows(parts, layout.bits, index)
    scale, minimum = scales(heads.reshape(*heads.shape[:-1], -1, layout.head))
    scale = _of_row(scale)
    values = scale * (found - zero).astype(jnp.float32).reshape(*scale.shape[:-1], -1)
    return (values if minimum is None else values + _of_row(minimum)).reshape(found.shape)


def _of_row(scales: Scales) -> Float[Array, "*b m 1"]:
    """Those of all parts of all blocks of a row."""
    return scales.reshape(*scales.shape[:-2], -1, 1)


def _halves(head: Head, start: int, count: int) -> list[Float[Array, "*b n 1"]]:
    """The `count` numbers of float16 from byte `start` of each head on, in float32."""
    pairs = head[..., start : start + 2 * count].reshape(*head.shape[:-1], count, 2)
    found = jax.lax.bitcast_convert_type(pairs, jnp.float16).astype(jnp.float32)
    return [found[..., i : i + 1] for i in range(count)]


def _scale(head: Head) -> tuple[Scales, None]:
    return _halves(head, 0, 1)[0], None


def _scale_and_minimum(head: Head) -> tuple[Scales, Scales]:
    both = computed_once(jnp.concatenate(_halves(head, 0, 2), axis=-1))
    return both[..., :1], both[..., 1:]


def _q2_k(head: Head) -> tuple[Scales, Scales]:
    """16 parts, whose scale and minimum have 4 bits each."""
    scale, minimum = _halves(head, 16, 2)
    return _of_parts(scale, head[..., :16] & 15), _of_parts(-minimum, head[..., :16] >> 4)


def _q3_k(head: Head) -> tuple[Scales, None]:
    """16 parts, whose scales have 6 bits: 4 in halves of 8 bytes, 2 in quarters of 4."""
    low = jnp.concatenate([head[..., :8] & 15, head[..., :8] >> 4], axis=-1)
    high = jnp.concatenate([(head[..., 8:12] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return _of_parts(_halves(head, 12, 1)[0], (low | (high << 4)).astype(jnp.int8) - 32), None


def _q4_k(head: Head) -> tuple[Scales, Scales]:
    """8 parts; a scale and a minimum of 6 bits each lie in 12 bytes."""
    first, second, third = (head[..., start : start + 4] for start in (4, 8, 12))
    codes = jnp.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = jnp.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    scale, minimum = _halves(head, 0, 2)
    return _of_parts(scale, codes), _of_parts(-minimum, minima)


def _q6_k(head: Head) -> tuple[Scales, None]:
    """16 parts, whose scales are int8."""
    return _of_parts(_halves(head, 16, 1)[0], jax.lax.bitcast_convert_type(head[..., :16], jnp.int8)), None


def _of_parts(scale: Float[Array, "*b n 1"], codes: Shaped[Array, "*b n p"]) -> Scales:
    """The scales of parts of blocks: that of the block times codes of theirs."""
    return computed_once(scale * codes.astype(jnp.float32))


SCALES: dict[str, tuple[int, Callable[[Head], tuple[Scales, Scales | None]]]] = {
    "Q4_0": (8, _scale),
    "Q4_1": (0, _scale_and_minimum),
    "Q5_0": (16, _scale),
    "Q5_1": (0, _scale_and_minimum),
    "Q8_0": (128, _scale),
    "Q2_K": (0, _q2_k),
    "Q3_K": (4, _q3_k),
    "Q4_K": (0, _q4_k),
    "Q5_K": (0, _q4_k),
    "Q6_K": (32, _q6_k),
}
"""By type, the code $c_0$, and what makes $s$ and $m$ of each part of a block from its head."""
