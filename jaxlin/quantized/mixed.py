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

from jaxlin.quantized.base import PackedMatrix


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixedStack(PackedMatrix):
    """One stack for each format, and where each layer lies: nothing is unpacked or filled up for the others' sake.

    A layer of it has the same stacks and says which of their matrices it is. So its leaves do not ride a scan over
    layers as those of an array do: see `layer_of` and `apart`.

    Attributes:
        stacks: an array or a packed stack for each format, ``[layers of it, out, in]``.
        stack: which of `stacks` a layer is in, int32, ``[...]``.
        place: which of the matrices of that stack it is, likewise.
    """

    stacks: tuple[Any, ...]
    stack: Any
    place: Any

    def is_finite(self) -> bool:
        """Whether all of its stacks are."""
        return all(s.is_finite() if isinstance(s, PackedMatrix) else bool(np.isfinite(s).all()) for s in self.stacks)

    def unpack(self) -> Array:
        """The values, in a dtype that holds those of all stacks."""
        return self._selected(lambda matrix: matrix[...])

    def unpack_rows(self, index: Int[Array, " n"]) -> Array:
        """The values of some rows of a single matrix."""
        return self._selected(lambda matrix: matrix[index])

    def layer(self, index: Any) -> "MixedStack":
        """The matrix of one layer; `index` may be traced."""
        stack, place = jax.tree.map(lambda a: a[index], (self.stack, self.place))
        return dataclasses.replace(self, stack=stack, place=place)

    def _selected(self, value: Callable[[Any], Array]) -> Array:
        def of(stack: Any, place: Array) -> Array:
            return value(jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, place, keepdims=False), stack))

        stacks = jax.tree.map(jnp.asarray, self.stacks)
        dtype = jnp.result_type(*(jax.eval_shape(of, stack, 0).dtype for stack in stacks))

        def selected(layer: tuple[Array, Array]) -> Array:
            # A branch takes its matrix out of the stack itself: the other stacks are not touched.
            branches = [lambda place, stack=stack: of(stack, place).astype(dtype) for stack in stacks]
            return jax.lax.switch(layer[0], branches, layer[1])

        layers = jnp.asarray(self.stack), jnp.asarray(self.place)
        return selected(layers) if layers[0].ndim == 0 else jax.lax.map(selected, layers)


def layer_of(layers: Any, index: Any) -> Any:
    """One layer of a pytree of stacks; `index` may be traced."""
    return jax.tree.map(lambda leaf: leaf.layer(index) if _is_mixed(leaf) else leaf[index], layers, is_leaf=_is_mixed)


def split_for_scan(layers: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A pytree of stacks as a scan over layers takes it, and what makes a layer of a row of it.

    Only stacks with a matrix for each layer ride a scan. Those of a `MixedStack` are closed over, and indexed in the
    body of the scan.
    """
    leaves, structure = jax.tree.flatten(layers, is_leaf=_is_mixed)
    riding = [dataclasses.replace(leaf, stacks=()) if _is_mixed(leaf) else leaf for leaf in leaves]

    def layer(row: Any) -> Any:
        rows = structure.flatten_up_to(row)
        pairs = zip(leaves, rows, strict=True)
        return structure.unflatten(
            [dataclasses.replace(row, stacks=leaf.stacks) if _is_mixed(leaf) else row for leaf, row in pairs]
        )

    return structure.unflatten(riding), layer


class Places:
    """Which stack each layer of a parameter lies in, and where in it: matrices of one form share one.

    Attributes:
        forms: the form of each stack, in the order in which they first occur.
        counts: how many matrices each stack has.
        stack: of each layer, which of the stacks it is in.
        place: of each layer, which of the matrices of that stack it is.
    """

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self.counts: list[int] = []
        self.stack: list[int] = []
        self.place: list[int] = []

    def add(self, matrix: Any) -> tuple[int, int]:
        """The stack and the place of the next layer, which is this matrix, with or without its values."""
        form = form_of(matrix)
        if form not in self.forms:
            self.forms.append(form)
            self.counts.append(0)
        stack = self.forms.index(form)
        self.stack.append(stack)
        self.place.append(self.counts[stack])
        self.counts[stack] += 1
        return stack, self.place[-1]


Form = tuple[Any, tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]]


def form_of(matrix: Any) -> Form:
    """What matrices that lie in one stack have in common: the structure, and the shapes and dtypes of the leaves."""
    leaves, structure = jax.tree.flatten(matrix)
    return structure, tuple((tuple(leaf.shape), np.dtype(leaf.dtype)) for leaf in leaves)


def widest(dtypes: Iterable[Any]) -> np.dtype[Any]:
    """The narrowest dtype that holds the values of all `dtypes`; NumPy alone knows none for float16 and bfloat16."""
    return functools.reduce(jnp.promote_types, dtypes)


def stacked_form(forms: Sequence[Any]) -> Any:
    """A stack without its values, of layers without theirs: plain where they are alike, otherwise `MixedStack`."""
    if len(forms[0].shape) == 1:  # vectors are widened to one dtype
        return jax.ShapeDtypeStruct((len(forms), *forms[0].shape), widest(form.dtype for form in forms))
    places = Places()
    for form in forms:
        places.add(form)
    stacks = tuple(
        structure.unflatten(jax.ShapeDtypeStruct((places.counts[i], *shape), dtype) for shape, dtype in leaves)
        for i, (structure, leaves) in enumerate(places.forms)
    )
    index = jax.ShapeDtypeStruct((len(forms),), np.int32)
    return stacks[0] if len(stacks) == 1 else MixedStack(stacks, index, index)


def _is_mixed(node: Any) -> bool:
    return isinstance(node, MixedStack)
