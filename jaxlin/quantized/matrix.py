"""`PackedMatrix`: a matrix in the bytes of its file, unpacked where it is used."""

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class PackedMatrix(ABC):
    """A matrix ``[..., out, in]`` whose values are computed from what is stored, exactly as its format says.

    It is a pytree. The leading axes of its leaves are the leading axes of the matrix, so that a scan runs over a stack
    of matrices and unpacks one layer at a time in its body. It stands where an array would: ``packed[...]`` is the
    matrix or the stack, ``packed[layer, expert]`` one matrix of a stack with these axes, whose indices may be traced,
    ``packed[rows]`` some rows of a single matrix, and every other index is refused.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return jax.eval_shape(type(self).unpack, self).shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its values, which is that of the reference decoder."""
        return jax.eval_shape(type(self).unpack, self).dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes it takes while it is packed."""
        return sum(array.nbytes for array in jax.tree.leaves(self))

    def is_finite(self) -> bool:
        """Whether every value is finite: where codes are integers, whether every float that is stored is."""
        arrays = map(np.asarray, jax.tree.leaves(self))
        return all(bool(np.isfinite(a).all()) for a in arrays if not np.issubdtype(a.dtype, np.integer))

    @abstractmethod
    def unpack(self) -> Array:
        """The values."""

    @abstractmethod
    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows of a single matrix; no index counts from the end."""

    def rows(self, index: Int[np.ndarray, " n"]) -> "PackedMatrix":
        """Some rows of a single matrix, packed, in this order."""
        raise NotImplementedError(f"{type(self).__name__}: rows are not taken from this format while it is packed.")

    def matrix(self, *place: Any) -> "PackedMatrix":
        """The matrix at a place in the leading axes, packed; the indices may be traced."""
        return jax.tree.map(lambda a: jnp.asarray(a)[place], self)

    def __getitem__(self, index: Any) -> Array:
        if index is Ellipsis:
            return self.unpack()
        shape = self.shape  # each access traces `unpack` anew
        if isinstance(index, tuple) and len(index) == len(shape) - 2 and not any(map(np.ndim, index)):
            return self.matrix(*index).unpack()
        if isinstance(index, tuple) or len(shape) != 2:
            raise IndexError(
                f"{type(self).__name__} of shape {shape}: expected [...], one matrix of a stack, or rows of a single "
                f"matrix; found {index!r}. Unpack it first: packed[...][index]."
            )
        rows = jnp.arange(shape[0])[index]
        if not rows.size:
            return jnp.zeros((*rows.shape, shape[1]), self.dtype)
        return _unpack_rows(self, rows.reshape(-1)).reshape(*rows.shape, -1)


@jax.jit
def _unpack_rows(packed: PackedMatrix, index: Int[Array, " n"]) -> Array:
    """One program: outside of `jax.jit`, each small step would be a program of its own."""
    return packed.unpack_rows(index)


def rounded(values: Float[Array, "*b"], dtype: Any) -> Float[Array, "*b"]:
    """`values` of float32 rounded to `dtype`, even where XLA would not.

    XLA leaves out a conversion to a narrower dtype whose result is widened again, as it may keep excess precision. Here
    that would be another weight than the reference's. On a CPU it does so with bfloat16 alone.
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        values = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    elif jnp.dtype(dtype) == jnp.float16:
        values = jax.lax.platform_dependent(values, cpu=lambda values: values, default=_rounded_to_float16)
    return values.astype(dtype)


def _rounded_to_float16(values: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """`values` of float32, each rounded to the nearest float16; below $2^{-14}$ these lie $2^{-24}$ apart."""
    normal = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=10)
    return jnp.where(jnp.abs(values) < 2**-14, jnp.rint(values * 2**24) * 2**-24, normal)
