r"""Codes with a scale and a zero point for each group of a row: GPTQ, AWQ, and what compressed-tensors packs."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt8

from jaxlin.quantized.codes import codes_of_rows, part_rows, rows_of_part, unpacked_codes
from jaxlin.quantized.format import ModuleTensors
from jaxlin.quantized.matrix import PackedMatrix, rounded

WORD_BITS = 32
"""The bits of a word, in which files keep several codes."""

SCALES = ("F16", "BF16", "F32")
"""The dtypes of scales, by the names of safetensors."""

MAX_SIDE = 2**31 - 1
"""The bound of the rows and columns of a matrix, and of the columns of a group."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Affine(PackedMatrix):
    r"""$w_{ij} = (q_{ij} - z_{i g_j})\, s_{i g_j}$, rounded to the dtype of $s$.

    The difference is an integer that the dtype of $s$ represents exactly, so that the product is rounded once, as in
    the kernels of these formats.

    Attributes:
        codes: $q$, of `bits` bits, ``[..., ceil(out bits / 8), in]``, see `jaxlin.quantized.codes`.
        zero: $z$, uint8, ``[..., out, groups]``.
        scale: $s$, ``[..., out, groups]``.
        group: $g$, the group of each column, int32, ``[..., in]``; None where groups are runs of one length.
        bits: how many bits a code has, 4 or 8.
    """

    codes: Any
    zero: Any
    scale: Any
    group: Any
    bits: int = field(metadata={"static": True})

    @classmethod
    def abstract(cls, shape: tuple[int, int], group_size: int, bits: int, dtype: Any, *, ordered: bool) -> "Affine":
        """A matrix without its values.

        Args:
            shape: ``(out, in)``.
            group_size: the columns of a group; -1 for one group.
            bits: the bits of a code.
            dtype: the dtype of the scales.
            ordered: whether groups are runs of one length.
        """
        array, (out, width) = jax.ShapeDtypeStruct, shape
        groups = 1 if group_size == -1 else -(-width // group_size)
        return cls(
            array((part_rows(out, bits), width), jnp.uint8),
            array((out, groups), jnp.uint8),
            array((out, groups), dtype),
            None if ordered else array((width,), jnp.int32),
            bits,
        )

    def is_finite(self) -> bool:
        """Whether the scales are finite, and their products with the largest difference of codes."""
        scale = np.asarray(self.scale)
        with np.errstate(over="ignore"):
            return bool(np.isfinite(scale * scale.dtype.type(2**self.bits)).all())

    def unpack(self) -> Array:
        """The values, in the dtype of the scales."""
        codes = jnp.asarray(self.codes)
        if self.group is not None and codes.ndim > 2:
            return jax.vmap(type(self).unpack)(self)
        scale = jnp.asarray(self.scale)
        return self._values(unpacked_codes((codes,), (self.bits,), scale.shape[-2]), jnp.asarray(self.zero), scale)

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows."""
        codes = codes_of_rows((jnp.asarray(self.codes),), (self.bits,), index)
        return self._values(codes, jnp.asarray(self.zero)[index], jnp.asarray(self.scale)[index])

    def rows(self, index: Int[np.ndarray, " n"]) -> "Affine":
        """Some rows, packed."""
        codes = rows_of_part(self.codes, self.bits, index)
        return dataclasses.replace(self, codes=codes, zero=self.zero[index], scale=self.scale[index])

    def _values(
        self, codes: Int[Array, "*b o i"], zero: UInt8[Array, "*b o n"], scale: Float[Array, "*b o n"]
    ) -> Array:
        if self.group is None:
            zero, scale = zero[..., None], scale[..., None]
            grouped = codes.reshape(*scale.shape[:-1], -1)
        else:
            group = jnp.asarray(self.group)
            zero, scale, grouped = zero[:, group], scale[:, group], codes
        # In float32 the product is exact: a difference has 9 bits, a scale 11.
        values = (grouped - zero.astype(jnp.int32)).astype(jnp.float32) * scale.astype(jnp.float32)
        return rounded(values, scale.dtype).reshape(codes.shape)


def group_count(module: ModuleTensors, width: int, group_size: int) -> int:
    """How many groups of `group_size` columns a row of `width` has; -1 is one group.

    Raises:
        CheckpointError: the last of them would be smaller.
    """
    if group_size == -1:
        return 1
    if width % group_size:
        raise module.error(module.stem, f"rows of whole groups of {group_size} columns", f"{width} columns")
    return width // group_size


def group_of_columns(
    module: ModuleTensors, suffix: str, width: int, groups: int, *, required: bool
) -> Int32[np.ndarray, " i"] | None:
    """The group of each column, which the tensor `suffix` gives; None where groups are runs of one length.

    Raises:
        CheckpointError: the tensor is `required` and missing, or names a group that does not exist.
    """
    if suffix not in module and not required:
        return None
    group = module.companion(suffix, ("I32",), (width,))
    if group.size and (group.min() < 0 or group.max() >= groups):
        raise module.error(suffix, f"groups in 0..{groups - 1}", f"{group.min()} to {group.max()}")
    return None if np.array_equal(group, np.arange(width) // (width // groups)) else group


def codes_in_words(words: Int32[np.ndarray, "n w"], bits: int) -> UInt8[np.ndarray, "n v"]:
    """The codes in the words of each row, those in the lowest bits first."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    return raw if bits == 8 else np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)
