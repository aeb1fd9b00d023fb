"""A model's parameters from a checkpoint's tensors: each read once, straight to its place in the stack of layers."""

import fnmatch
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from jaxlin.checkpoint.safetensors import FLOATS
from jaxlin.common.errors import CheckpointError
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sharding import Placed, sharding_of
from jaxlin.porting.port import Port, TensorRows
from jaxlin.quantized import BFloat16, MixedStack, PackedMatrix
from jaxlin.quantized.mixed import Places, widest

LOG = logging.getLogger("jaxlin")

DEAD = {"*.rotary_emb.inv_freq": "a buffer of old files; the config says it"}
"""Tensors that transformers leaves out of every model, and why they change nothing."""

OTHER_HEADS = {
    **dict.fromkeys(
        ("score.*", "classifier.*", "qa_outputs.*", "regression_layer.*", "gating.*", "reward_head.*", "rm_head.*"),
        "the head of a classifier or reward model",
    ),
    **dict.fromkeys(("v_head.*", "value_head.*"), "the value head of a training run"),
    "linear.*": "the projection of an embedding model",
}
"""Heads other than the unembedding, which read the decoder's output and are no part of it."""


@runtime_checkable
class Tensors(Protocol):
    """A checkpoint under Hugging Face's names, whatever its format."""

    def names(self) -> Iterable[str]:
        """The tensors there are."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one."""
        ...

    def is_packed(self, name: str) -> bool:
        """Whether one is read as a packed matrix."""
        ...

    def read(self, name: str) -> np.ndarray | PackedMatrix:
        """The values of one."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | PackedMatrix:
        """Some rows of one."""
        ...


def filled(abstract: Decoder, tensors: Tensors, port: Port, source: str, mesh: Mesh | None = None) -> Decoder:
    """`abstract` with the values of `tensors`, on the devices of `mesh`.

    The parameter tree drives the reading, so that a missing tensor cannot go unseen; what it did not ask for is
    refused too. Of a tensor whose rows are split over devices, only the rows of this process's devices are read.

    Raises:
        CheckpointError: a tensor that is missing, of another shape, not finite, or that the model does not have.
    """
    there, used = set(tensors.names()), set()
    left_out = {**DEAD, **OTHER_HEADS, **port.left_out}
    tied = str(port.tensor_of(abstract.config, "lm_head.weight")) if abstract.config.tie_word_embeddings else None

    def stored(name: str, shape: tuple[int, ...], layer: int | None = None) -> Any:
        """A parameter of one layer, or of none: packed, or as what reads its rows."""
        found = port.tensor_of(abstract.config, name, layer)
        part = found if isinstance(found, TensorRows) else TensorRows(found, 0, shape[0], shape[0])
        tensor, first, whole = part.tensor, part.start, (part.total, *shape[1:])
        if name == "embed_tokens.weight" and tensor not in there and tied:
            tensor = tied  # one of two equal matrices is enough
        if tensor not in there:
            raise CheckpointError(f"{source}: expected a tensor {tensor} of shape {whole}; found none.")
        if tensors.shape(tensor) != whole:
            raise CheckpointError(f"{source}, tensor {tensor}: expected shape {whole}; found {tensors.shape(tensor)}.")
        used.add(tensor)

        def read(start: int, stop: int) -> Any:
            all_of_it = (first + start, first + stop) == (0, whole[0])
            values = tensors.read(tensor) if all_of_it else tensors.read_rows(tensor, first + start, first + stop)
            _check(values, f"{source}, tensor {tensor}")
            return values

        if tensors.is_packed(tensor):
            if len(shape) != 2:
                raise CheckpointError(f"{source}, tensor {tensor}: expected values, as of a vector; found codes.")
            return read(0, shape[0])
        rows = _Stored(shape, read)
        return BFloat16(rows) if rows.dtype == np.uint16 else rows

    def parameter(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        name = ".".join(key.name for key in path if key.name != "value")
        if name.startswith("layers."):
            return _stacked(name, lambda layer: stored(name, leaf.shape[1:], layer), leaf.shape, mesh)
        return jax.tree.map(lambda part: _whole(name, part, mesh), stored(name, leaf.shape))

    model = jax.tree_util.tree_map_with_path(parameter, abstract)
    unused = there - used - {tied}
    extra = sorted(unused.difference(*(fnmatch.filter(unused, pattern) for pattern in left_out)))
    extra = [name for name in extra if not _adds_nothing(tensors, name)]
    if extra:
        raise CheckpointError(
            f"{source}: expected only tensors that the model has; found {', '.join(extra[:4])}"
            f"{f' and {len(extra) - 4} more' if len(extra) > 4 else ''}. They could change the output."
        )
    for pattern, why in left_out.items():
        if count := len(fnmatch.filter(unused, pattern)):
            LOG.warning("%s: left out %d tensors %s: %s", source, count, pattern, why)
    return model


def _adds_nothing(tensors: Tensors, name: str) -> bool:
    """Whether a tensor is a bias of zeros, which old files of GPTQ have where the model has none."""
    values = tensors.read(name) if name.endswith(".bias") and len(tensors.shape(name)) == 1 else None
    return isinstance(values, np.ndarray) and not values.any()


def _check(values: np.ndarray | PackedMatrix, where: str) -> None:
    if isinstance(values, np.ndarray) and values.dtype not in FLOATS:
        raise CheckpointError(
            f"{where}: expected values of {', '.join(map(str, FLOATS))}; found {values.dtype}. "
            "If it is quantised, config.json should say how, under quantization_config."
        )
    if not (values.is_finite() if isinstance(values, PackedMatrix) else np.isfinite(values).all()):
        raise CheckpointError(f"{where}: expected finite values; found NaN or infinity.")


class _Stored:
    """An array in a file, whose rows are read when they are asked for; a matrix of bfloat16 gives its bits."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray]) -> None:
        self.shape, self._read = shape, read
        found = read(0, 0).dtype
        self.dtype = np.dtype(np.uint16) if len(shape) == 2 and found == ml_dtypes.bfloat16 else found

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return self._read(start, stop).view(self.dtype)


def _stacked(name: str, stored: Callable[[int], Any], shape: tuple[int, ...], mesh: Mesh | None) -> Any:
    """The values of all layers on a leading axis; a layer is let go of once it is in its place.

    Matrices that are not stored alike lie in a stack for each form; vectors are widened to one dtype.
    """
    if len(shape) == 2:
        vectors = list(map(stored, range(shape[0])))
        wide = _placed(name, shape, widest(vector.dtype for vector in vectors), mesh)
        for layer, vector in enumerate(vectors):
            wide.take(vector, layer)
        return wide.array()
    places, stacks = Places(), []
    for layer in range(shape[0]):
        matrix = stored(layer)
        stack, place = places.add(matrix)
        leaves = jax.tree.leaves(matrix)
        if stack == len(stacks):
            # Room for all that may follow, of which only what is written takes memory.
            stacks.append([_placed(name, (shape[0] - layer, *leaf.shape), leaf.dtype, mesh) for leaf in leaves])
        for placed, leaf in zip(stacks[stack], leaves, strict=True):
            placed.take(leaf, place)
    filled = tuple(
        structure.unflatten(placed.array(places.counts[i]) for placed in stacks[i])
        for i, (structure, _) in enumerate(places.forms)
    )
    if len(filled) == 1:
        return filled[0]
    return MixedStack(
        filled, *(_whole(name, np.array(index, np.int32), mesh) for index in (places.stack, places.place))
    )


def _whole(name: str, part: Any, mesh: Mesh | None) -> jax.Array:
    """One array, which is no stack."""
    placed = _placed(name, part.shape, part.dtype, mesh)
    placed.take(part)
    return placed.array()


def _placed(name: str, shape: tuple[int, ...], dtype: Any, mesh: Mesh | None) -> Placed:
    return Placed(sharding_of(mesh, name, shape), shape, dtype)
