"""A model's parameters from a checkpoint's tensors: each is read once, into its place in the stack of layers."""

import fnmatch
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlin.common.errors import CheckpointError
from jaxlin.loading.stored import StoredArrays, TensorSource
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sharding import ShardedArray, sharding_of
from jaxlin.nn.stack import PlaceKey, layers_at
from jaxlin.porting.port import Port
from jaxlin.quantized import MixedStack
from jaxlin.quantized.mixed import StackPlaces, common_dtype, signature_of

LOG = logging.getLogger("jaxlin")

UNUSED_TENSORS = {"*.rotary_emb.inv_freq": "a buffer of old files, which the config gives"}
"""Tensors that transformers leaves out of every model, and why they change nothing."""

TASK_HEADS = {
    **dict.fromkeys(
        ("score.*", "classifier.*", "qa_outputs.*", "regression_layer.*", "gating.*", "reward_head.*", "rm_head.*"),
        "the head of a classifier or reward model",
    ),
    **dict.fromkeys(("v_head.*", "value_head.*"), "the value head of a training run"),
    "linear.*": "the projection of an embedding model",
}
"""Heads other than the unembedding, which read the decoder's output and are no part of the decoder."""


def parameter_name(path: tuple[Any, ...]) -> str:
    """The name of a parameter at a path of a model's pytree, such as ``layers.mlp.up_proj.weight``."""
    return ".".join(key.name for key in path if not isinstance(key, PlaceKey) and key.name != "value")


def leading_axes(name: str) -> int:
    """How many axes of a parameter count layers and experts: below ``layers.`` the first, below ``experts.`` the next.

    What follows them is a matrix or a vector.
    """
    return name.startswith("layers.") + (".experts." in name)


def read_parameters(
    abstract: Decoder, tensors: TensorSource, port: Port, source: str, mesh: Mesh | None = None
) -> Decoder:
    """`abstract` with the values of `tensors`, on the devices of `mesh`.

    Each parameter looks for its tensor, so that a missing tensor is noticed; a tensor that no parameter has is refused
    too. Where rows or experts are split over devices, a process reads only those of its own devices.

    Raises:
        CheckpointError: a tensor is missing, has another shape, has values that are not finite, or is not the model's.
    """
    names = set(tensors.names())
    port = port.in_layout_of(abstract.config, names, source)
    left_out = {**UNUSED_TENSORS, **TASK_HEADS, **port.left_out, **port.unread(abstract.config)}
    stored = StoredArrays(tensors, port, abstract.config, source)
    # All tensors are looked for before any is read: a config that lies about a size is refused before memory is taken.
    for path, struct in jax.tree_util.tree_leaves_with_path(abstract):
        name = parameter_name(path)
        for layer, *expert in _places(struct.shape[: leading_axes(name)]):
            stored.locate(name, struct.shape[1:], layers_at(path, struct.shape[0])[layer], *expert)

    def parameter(path: tuple[Any, ...], struct: jax.ShapeDtypeStruct) -> Any:
        name = parameter_name(path)
        if name.startswith("layers."):
            return _stacked(name, struct.shape, layers_at(path, struct.shape[0]), stored, mesh)
        return jax.tree.map(lambda part: _unstacked(name, part, mesh), stored.array(name, struct.shape))

    model = jax.tree_util.tree_map_with_path(parameter, abstract)
    unread = names - stored.located - {stored.tied}
    unknown = sorted(unread.difference(*(fnmatch.filter(unread, pattern) for pattern in left_out)))
    unknown = [name for name in unknown if not _adds_nothing(tensors, name)]
    if unknown:
        raise CheckpointError(
            f"{source}: expected only tensors that the model has; found {', '.join(unknown[:4])}"
            f"{f' and {len(unknown) - 4} more' if len(unknown) > 4 else ''}. They could change the output."
        )
    matching = {pattern: fnmatch.filter(unread, pattern) for pattern in left_out}
    for reason in dict.fromkeys(left_out.values()):
        patterns = [pattern for pattern, tensors in matching.items() if tensors and left_out[pattern] == reason]
        if patterns:
            count = len(set().union(*(matching[pattern] for pattern in patterns)))
            listed = ", ".join(patterns[:3]) + (f" and {len(patterns) - 3} more" if len(patterns) > 3 else "")
            LOG.warning("%s: left out %d tensors %s: %s", source, count, listed, reason)
    return model


def _places(leading: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The layers, or the experts of each, one by one: `np.ndindex` lists them all first, however many there may be."""
    for layer in range(leading[0]) if leading else ():
        yield from ((layer, expert) for expert in range(leading[1])) if leading[1:] else ((layer,),)


def _adds_nothing(tensors: TensorSource, name: str) -> bool:
    """Whether a tensor is a bias of zeros, which old files of GPTQ have where the model has none."""
    values = tensors.read(name) if name.endswith(".bias") and len(tensors.shape(name)) == 1 else None
    return isinstance(values, np.ndarray) and not values.any()


def _stacked(name: str, shape: tuple[int, ...], layers: range, stored: StoredArrays, mesh: Mesh | None) -> Any:
    """The values of a parameter in these layers, on a leading axis, with an axis of experts after it if it has any.

    A matrix is released as soon as it is in its place. Matrices of unlike formats are in a stack for each; vectors are
    widened to one dtype.
    """
    leading = shape[: leading_axes(name)]

    def array(place: tuple[int, ...]) -> Any:
        return stored.array(name, shape[1:], layers[place[0]], *place[1:])

    if len(shape) == len(leading) + 1:
        vectors = {place: array(place) for place in _places(leading)}
        stack = _placed(name, shape, common_dtype(vector.dtype for vector in vectors.values()), mesh)
        for place, vector in vectors.items():
            stack.write(vector, place)
        return stack.array()
    places, stacks = StackPlaces(), []
    own = _placed(name, shape, np.uint8, mesh)
    for layer in range(leading[0]):
        index = place = 0
        for expert in np.ndindex(leading[1:]):
            if not own.has((layer, *expert)):
                continue
            matrix = array((layer, *expert))
            if len(places.stack) == layer:
                index, place = places.add(matrix)
            elif signature_of(matrix) != places.signatures[index]:
                raise stored.unlike_format(name, layers[layer], expert[0])
            arrays = jax.tree.leaves(matrix)
            if index == len(stacks):
                # There is room for all layers that may follow, of which only what is written takes memory.
                room = (leading[0] - layer, *leading[1:])
                stacks.append([_placed(name, (*room, *array.shape), array.dtype, mesh) for array in arrays])
            for placed, part in zip(stacks[index], arrays, strict=True):
                placed.write(part, (place, *expert))
    matrices = tuple(
        structure.unflatten(placed.array(places.counts[i]) for placed in stacks[i])
        for i, (structure, _) in enumerate(places.signatures)
    )
    if len(matrices) == 1:
        return matrices[0]
    indices = (_unstacked(name, np.array(index, np.int32), mesh) for index in (places.stack, places.place))
    return MixedStack(matrices, *indices)


def _unstacked(name: str, part: Any, mesh: Mesh | None) -> jax.Array:
    """The values of an array without a leading axis of layers."""
    placed = _placed(name, part.shape, part.dtype, mesh)
    placed.write(part)
    return placed.array()


def _placed(name: str, shape: tuple[int, ...], dtype: Any, mesh: Mesh | None) -> ShardedArray:
    return ShardedArray(sharding_of(mesh, name, shape), shape, dtype)
