r"""GGUF's blocks, decoded by the layouts of ggml: 32 or 256 values of a row in one run of bytes.

The decoders agree with the ``gguf`` library bit for bit. In every product one factor has few enough bits that it is
exact, so no order of the operations can change a value.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (layouts).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxlin.packed.base import Packed

Bytes = UInt8[Array, "..."]
Values = Float[Array, "..."]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks(Packed):
    """Rows of blocks. Of a stack, each layer may have its own type: files keep some in more bits.

    Attributes:
        raw: the bytes, ``[..., out, bytes]``; a layer with narrower blocks than another is filled up with zeros.
        kind: which of `kinds` it is, ``[...]``.
        kinds: ggml's names of the types that occur.
        width: how many values a row has.
    """

    raw: Any
    kind: Any
    kinds: tuple[str, ...] = field(metadata={"static": True})
    width: int = field(metadata={"static": True})

    @classmethod
    def of(cls, raw: np.ndarray, kind: str, kinds: tuple[str, ...], width: int) -> "Blocks":
        """One matrix, of type `kind`, of a stack whose layers have the types `kinds`."""
        longest = max(row_bytes(name, width) for name in kinds)
        if raw.shape[-1] < longest:
            raw = np.pad(raw, ((0, 0), (0, longest - raw.shape[-1])))
        return cls(raw, np.int32(kinds.index(kind)), kinds, width)

    def unpack(self) -> Array:
        """The values in float32."""
        raw, kind = jnp.asarray(self.raw), jnp.asarray(self.kind)
        decoders = [lambda raw, name=name: decoded(raw, name, self.width) for name in self.kinds]
        if len(decoders) == 1:
            return decoders[0](raw)
        if kind.ndim == 0:
            return jax.lax.switch(kind, decoders, raw)
        return jax.lax.map(lambda layer: jax.lax.switch(layer[0], decoders, layer[1]), (kind, raw))

    def is_finite(self) -> bool:
        """Whether the floats in its blocks are."""
        name = self.kinds[int(self.kind)]
        size, _, _ = TYPES[name]
        raw = np.asarray(self.raw)[..., : row_bytes(name, self.width)].reshape(-1, size)
        if name in FLOATS:
            return bool(np.isfinite(raw.reshape(-1).view(FLOATS[name])).all())
        return all(np.isfinite(raw[:, i : i + 2].copy().view(np.float16)).all() for i in HALVES[name])

    def rows(self, index: Any) -> Packed:
        """Some rows, packed."""
        return dataclasses.replace(self, raw=self.raw[index])


def row_bytes(kind: str, width: int) -> int:
    """The bytes of a row of `width` values."""
    size, values, _ = TYPES[kind]
    return width // values * size


def decoded(raw: UInt8[Array, "*b r"], kind: str, width: int) -> Float[Array, "*b i"]:
    """The values of rows of blocks; what follows the last block is ignored."""
    size, values, decode = TYPES[kind]
    blocks = raw[..., : row_bytes(kind, width)].reshape(*raw.shape[:-1], width // values, size)
    return decode(blocks).reshape(*raw.shape[:-1], width)


def _half(raw: Bytes, start: int) -> Values:
    """The float16 at byte `start`, in float32, ``[..., 1]``.

    Its bytes are put together by hand: XLA takes a conversion of two bytes to one number for a reduction, and compiles
    it apart from what uses it.
    """
    low, high = raw[..., start : start + 1].astype(jnp.uint16), raw[..., start + 1 : start + 2].astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(low | (high << 8), jnp.float16).astype(jnp.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """The low halves of the bytes, then the high ones."""
    return jnp.concatenate([raw & 15, raw >> 4], axis=-1)


def _bits(raw: Bytes) -> Bytes:
    """The bits of a run of bytes, the lowest of the first byte first."""
    shifts = jax.lax.broadcasted_iota(jnp.uint8, (*raw.shape, 8), raw.ndim)
    return ((raw[..., None] >> shifts) & 1).reshape(*raw.shape[:-1], -1)


def _float(codes: Array) -> Values:
    return codes.astype(jnp.float32)


def _q4_0(raw: Bytes) -> Values:
    return _half(raw, 0) * (_float(_nibbles(raw[..., 2:])) - 8)


def _q4_1(raw: Bytes) -> Values:
    return _half(raw, 0) * _float(_nibbles(raw[..., 4:])) + _half(raw, 2)


def _q5_0(raw: Bytes) -> Values:
    codes = _nibbles(raw[..., 6:]) | (_bits(raw[..., 2:6]) << 4)
    return _half(raw, 0) * (_float(codes) - 16)


def _q5_1(raw: Bytes) -> Values:
    codes = _nibbles(raw[..., 8:]) | (_bits(raw[..., 4:8]) << 4)
    return _half(raw, 0) * _float(codes) + _half(raw, 2)


def _q8_0(raw: Bytes) -> Values:
    return _half(raw, 0) * _float(jax.lax.bitcast_convert_type(raw[..., 2:], jnp.int8))


def _q2_k(raw: Bytes) -> Values:
    """16 sub-blocks of 16 values of 2 bits, with a scale and a minimum of 4 bits each."""
    scales, codes = raw[..., :16], _crumbs(raw[..., 16:80])
    scale = _half(raw, 80) * _float(scales & 15)
    minimum = _half(raw, 82) * _float(scales >> 4)
    return _by_sub_block(scale, codes) - jnp.repeat(minimum, 16, axis=-1)


def _q3_k(raw: Bytes) -> Values:
    """16 sub-blocks of 16 values of 3 bits, the third in a mask of its own, with scales of 6 bits."""
    mask, codes, packed = raw[..., :32], _crumbs(raw[..., 32:96]), raw[..., 96:108]
    third = _spread(mask, 1, 8)
    low = _nibbles(packed[..., :8])
    high = _spread(packed[..., 8:], 2, 4)
    scale = _half(raw, 108) * (_float(low | (high << 4)) - 32)
    return _by_sub_block(scale, _float(codes) + 4 * (_float(third) - 1))


def _q4_k(raw: Bytes) -> Values:
    return _k_with_minima(raw, _halves_of_32(raw[..., 16:144]))


def _q5_k(raw: Bytes) -> Values:
    fifth = _spread(raw[..., 16:48], 1, 8)
    return _k_with_minima(raw, _halves_of_32(raw[..., 48:176]) | (fifth << 4))


def _q6_k(raw: Bytes) -> Values:
    """16 sub-blocks of 16 values of 6 bits: 4 in halves of bytes, 2 in quarters; scales are int8."""
    low = raw[..., :128].reshape(*raw.shape[:-1], 2, 1, 64)
    low = jnp.concatenate([low & 15, low >> 4], axis=-2).reshape(*raw.shape[:-1], 256)
    high = _spread(raw[..., 128:192].reshape(*raw.shape[:-1], 2, 32), 2, 4).reshape(*raw.shape[:-1], 256)
    scale = _half(raw, 208) * _float(jax.lax.bitcast_convert_type(raw[..., 192:208], jnp.int8))
    return _by_sub_block(scale, _float(low | (high << 4)) - 32)


def _k_with_minima(raw: Bytes, codes: Bytes) -> Values:
    """8 sub-blocks of 32 values; a scale and a minimum of 6 bits each lie in 12 bytes."""
    first, second, third = (raw[..., start : start + 4] for start in (4, 8, 12))
    scale = jnp.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minimum = jnp.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    low = _half(raw, 2) * _float(minimum)
    return _by_sub_block(_half(raw, 0) * _float(scale), codes) - jnp.repeat(low, 32, axis=-1)


def _by_sub_block(scale: Values, codes: Array) -> Values:
    """Each scale times the codes of its sub-block."""
    count = scale.shape[-1]
    parts = codes.reshape(*codes.shape[:-1], count, -1)
    return (scale[..., None] * _float(parts)).reshape(codes.shape)


def _halves_of_32(raw: Bytes) -> Bytes:
    """Of every 32 bytes the low halves, then the high ones."""
    return _nibbles(raw.reshape(*raw.shape[:-1], -1, 32)).reshape(*raw.shape[:-1], -1)


def _crumbs(raw: Bytes) -> Bytes:
    """Of every 32 bytes the lowest quarters, then the next ones."""
    return _spread(raw.reshape(*raw.shape[:-1], -1, 32), 2, 4).reshape(*raw.shape[:-1], -1)


def _spread(raw: Bytes, bits: int, count: int) -> Bytes:
    """The lowest `bits` of all bytes, then the next ones, `count` times."""
    shifts = bits * jax.lax.broadcasted_iota(jnp.uint8, (*raw.shape[:-1], count, 1), raw.ndim - 1)
    return ((raw[..., None, :] >> shifts) & (2**bits - 1)).reshape(*raw.shape[:-1], -1)


def _viewed(dtype: Any) -> Callable[[Bytes], Values]:
    return lambda raw: jax.lax.bitcast_convert_type(raw, dtype).astype(jnp.float32)[..., None]


TYPES: dict[str, tuple[int, int, Callable[[Bytes], Values]]] = {
    "F32": (4, 1, _viewed(jnp.float32)),
    "F16": (2, 1, _viewed(jnp.float16)),
    "BF16": (2, 1, _viewed(jnp.bfloat16)),
    "Q4_0": (18, 32, _q4_0),
    "Q4_1": (20, 32, _q4_1),
    "Q5_0": (22, 32, _q5_0),
    "Q5_1": (24, 32, _q5_1),
    "Q8_0": (34, 32, _q8_0),
    "Q2_K": (84, 256, _q2_k),
    "Q3_K": (110, 256, _q3_k),
    "Q4_K": (144, 256, _q4_k),
    "Q5_K": (176, 256, _q5_k),
    "Q6_K": (210, 256, _q6_k),
}
"""The types that stay packed: bytes and values of a block, and its decoder."""

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""The types that are plain floats."""

HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)},
}
"""Where the float16 scales of a block begin."""
