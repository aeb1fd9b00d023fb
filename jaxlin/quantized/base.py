"""`PackedMatrix`: a matrix in the bytes of its file, unpacked where it is used."""

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class PackedMatrix(ABC):
    """A matrix ``[..., out, in]`` whose values are computed from what is stored, exactly as its format says.

    A pytree: leading axes of its leaves are leading axes of the matrix, so a stack of them rides a scan, and one layer
    at a time is unpacked in its body. It stands where an array would: ``packed[...]`` is the matrix or the stack,
    ``packed[rows]`` some rows of a single matrix, and nothing else is.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return jax.eval_shape(type(self).unpack, self).shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its values, that of the reference decoder."""
        return jax.eval_shape(type(self).unpack, self).dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes it takes as it is."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def is_finite(self) -> bool:
        """Whether every value is: whether every float that is stored is, where codes are integers."""
        floats = (leaf for leaf in map(np.asarray, jax.tree.leaves(self)) if not np.issubdtype(leaf.dtype, np.integer))
        return all(bool(np.isfinite(leaf).all()) for leaf in floats)

    @abstractmethod
    def unpack(self) -> Array:
        """The values."""

    @abstractmethod
    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows of a single matrix, none of them counted from the end."""

    def rows(self, start: int, stop: int) -> "PackedMatrix":
        """Some rows of a single matrix, packed."""
        raise NotImplementedError(f"{type(self).__name__}: rows are not taken of what is already in a stack")

    def __getitem__(self, index: Any) -> Array:
        if index is Ellipsis:
            return self.unpack()
        shape = self.shape  # traced anew each time that it is asked for
        if isinstance(index, tuple) or len(shape) != 2:
            raise IndexError(
                f"{type(self).__name__} of shape {shape}: expected [...], or rows of a single matrix; "
                f"found {index!r}. Unpack it first: packed[...][index]."
            )
        rows = jnp.arange(shape[0])[index]
        if not rows.size:
            return jnp.zeros((*rows.shape, shape[1]), self.dtype)
        return _unpack_rows(self, rows.reshape(-1)).reshape(*rows.shape, -1)


@jax.jit
def _unpack_rows(packed: PackedMatrix, index: Int[Array, " n"]) -> Array:
    """In one program: each of the many small steps would be one of its own where rows are read outside of any."""
    return packed.unpack_rows(index)


def rounded(values: Float[Array, "*b"], dtype: Any) -> Float[Array, "*b"]:
    """`values` of float32 in `dtype`, rounded for certain.

    XLA leaves out a conversion to a narrower dtype whose result is widened again: what it takes for excess precision is
    here another weight than the reference's. On a CPU it does so with bfloat16 alone.
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        values = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    elif jnp.dtype(dtype) == jnp.float16:
        values = jax.lax.platform_dependent(values, cpu=lambda values: values, default=_rounded_to_float16)
    return values.astype(dtype)


def _rounded_to_float16(values: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """`values` of float32 at the float16 nearest to each; below $2^{-14}$ they lie $2^{-24}$ apart."""
    normal = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=10)
    return jnp.where(jnp.abs(values) < 2**-14, jnp.rint(values * 2**24) * 2**-24, normal)
