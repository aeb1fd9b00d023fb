"""A stack of layers whose matrices are not all in one format."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxlin.quantized.matrix import PackedMatrix


class UnslicedStack:
    """A node of a pytree of stacks that a scan over layers must not take row by row, as it does an array.

    The scan closes over it, and its matrices are indexed in the body: see `layer_of` and `split_for_scan`.
    """

    __slots__ = ()

    def scanned(self) -> Any:
        """What a scan takes in its place, row by row."""
        raise NotImplementedError(f"{type(self).__name__} does not say what is scanned in its place")

    def with_row(self, row: Any) -> Any:
        """The layer that a row of `scanned` belongs to."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a layer is")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixedStack(PackedMatrix, UnslicedStack):
    """A stack for each format, and the place of each layer: no matrix is unpacked or padded to be like the others.

    One layer of it has the same stacks, and the index of its matrix in them.

    Attributes:
        stacks: an array or a packed stack for each format, ``[layers in it, ..., out, in]``.
        stack: the index in `stacks` of the stack that a layer is in, int32, ``[...]``.
        place: the index of the layer in that stack, int32, ``[...]``.
        expert: the index of the matrix in its layer, if the layers have several and this is one of them.
    """

    stacks: tuple[Any, ...]
    stack: Any
    place: Any
    expert: Any = None

    def is_finite(self) -> bool:
        """Whether every value of every stack is finite."""
        return all(s.is_finite() if isinstance(s, PackedMatrix) else bool(np.isfinite(s).all()) for s in self.stacks)

    def unpack(self) -> Array:
        """The values, in a dtype that represents those of all stacks."""
        return self._selected(lambda matrix: matrix[...])

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows of a single matrix."""
        return self._selected(lambda matrix: matrix[index])

    def layer(self, index: Any) -> "MixedStack":
        """The matrix of one layer, or the matrices of its experts; `index` may be traced."""
        stack, place = jax.tree.map(lambda a: jnp.asarray(a)[index], (self.stack, self.place))
        return dataclasses.replace(self, stack=stack, place=place)

    def scanned(self) -> "MixedStack":
        """The places of the layers."""
        return dataclasses.replace(self, stacks=())

    def with_row(self, row: Any) -> "MixedStack":
        """The matrix of one layer."""
        return dataclasses.replace(row, stacks=self.stacks)

    def matrix(self, *place: Any) -> "MixedStack":
        """The matrix at a place in the leading axes; the indices may be traced."""
        stack, expert = (self, place) if np.ndim(self.stack) == 0 else (self.layer(place[0]), place[1:])
        return dataclasses.replace(stack, expert=expert[0] if expert else None)

    def _selected(self, value: Callable[[Any], Array]) -> Array:
        def value_at(stack: Any, place: Any) -> Array:
            index = place if self.expert is None else (place, self.expert)
            return value(jax.tree.map(lambda a: a[index], stack))

        stacks = jax.tree.map(jnp.asarray, self.stacks)
        dtype = jnp.result_type(*(jax.eval_shape(value_at, stack, 0).dtype for stack in stacks))

        def selected(layer: tuple[Array, Array]) -> Array:
            # Each branch indexes its own stack, so that the other stacks are not read.
            branches = [lambda place, stack=stack: value_at(stack, place).astype(dtype) for stack in stacks]
            return jax.lax.switch(layer[0], branches, layer[1])

        layers = jnp.asarray(self.stack), jnp.asarray(self.place)
        return selected(layers) if layers[0].ndim == 0 else jax.lax.map(selected, layers)


def layer_of(layers: Any, index: Any) -> Any:
    """One layer of a pytree of stacks; `index` may be traced."""
    scanned, layer = split_for_scan(layers)
    return layer(jax.tree.map(lambda a: a[index], scanned))


def split_for_scan(layers: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Split a pytree of stacks into the part that a scan takes, and a function that makes a layer of one row of it.

    Every `UnslicedStack` is closed over, and gives the part that is scanned in its place.
    """
    stacks, structure = jax.tree.flatten(layers, is_leaf=_is_unsliced)
    scanned = [stack.scanned() if _is_unsliced(stack) else stack for stack in stacks]

    def layer(row: Any) -> Any:
        pairs = zip(stacks, structure.flatten_up_to(row), strict=True)
        return structure.unflatten([stack.with_row(part) if _is_unsliced(stack) else part for stack, part in pairs])

    return structure.unflatten(scanned), layer


class StackPlaces:
    """The stack that each layer of a parameter is in, and its index there: matrices of one signature share a stack.

    Attributes:
        signatures: the signature of each stack, in the order in which they first occur.
        counts: how many matrices each stack has.
        stack: the index of the stack of each layer.
        place: the index of each layer in its stack.
    """

    def __init__(self) -> None:
        self.signatures: list[Signature] = []
        self.counts: list[int] = []
        self.stack: list[int] = []
        self.place: list[int] = []

    def add(self, matrix: Any) -> tuple[int, int]:
        """The stack and the place of the next layer, which is `matrix`, with or without its values."""
        signature = signature_of(matrix)
        if signature not in self.signatures:
            self.signatures.append(signature)
            self.counts.append(0)
        stack = self.signatures.index(signature)
        self.stack.append(stack)
        self.place.append(self.counts[stack])
        self.counts[stack] += 1
        return stack, self.place[-1]


Signature = tuple[Any, tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]]
"""The structure of a matrix, and the shapes and dtypes of its leaves."""


def signature_of(matrix: Any) -> Signature:
    """The signature of a matrix: a stack has matrices of one signature only."""
    leaves, structure = jax.tree.flatten(matrix)
    return structure, tuple((tuple(array.shape), np.dtype(array.dtype)) for array in leaves)


def common_dtype(dtypes: Iterable[Any]) -> np.dtype[Any]:
    """The narrowest dtype that represents the values of all `dtypes`; NumPy has none for float16 and bfloat16."""
    return functools.reduce(jnp.promote_types, dtypes)


def abstract_stack(layers: Sequence[Any], experts: Sequence[int] = ()) -> Any:
    """The shapes of a stack, from the shapes of its layers: a `MixedStack` only if the layers differ.

    Args:
        layers: the array or matrix of each layer; of experts, that of one.
        experts: how many experts a layer has, if any.
    """
    if len(layers[0].shape) == 1:  # vectors are widened to one dtype
        dtype = common_dtype(layer.dtype for layer in layers)
        return jax.ShapeDtypeStruct((len(layers), *experts, *layers[0].shape), dtype)
    places = StackPlaces()
    for layer in layers:
        places.add(layer)
    stacks = tuple(
        structure.unflatten(
            jax.ShapeDtypeStruct((places.counts[i], *experts, *shape), dtype) for shape, dtype in leaves
        )
        for i, (structure, leaves) in enumerate(places.signatures)
    )
    index = jax.ShapeDtypeStruct((len(layers),), np.int32)
    return stacks[0] if len(stacks) == 1 else MixedStack(stacks, index, index)


def _is_unsliced(node: Any) -> bool:
    return isinstance(node, UnslicedStack)
