"""A model's parameters from a checkpoint's tensors: each is read once, into its place in the stack of layers."""

import fnmatch
import logging
from collections.abc import Callable, Collection
from typing import Any, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from jaxlin.checkpoint.safetensors import FLOATS
from jaxlin.common.errors import CheckpointError
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sharding import ShardedArray, sharding_of
from jaxlin.porting.port import Port
from jaxlin.quantized import BFloat16, MixedStack, PackedMatrix
from jaxlin.quantized.mixed import StackPlaces, common_dtype

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


@runtime_checkable
class TensorSource(Protocol):
    """A checkpoint under Hugging Face's names, whatever its format."""

    def names(self) -> Collection[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is read as a packed matrix."""
        ...

    def read(self, name: str) -> np.ndarray | PackedMatrix:
        """The values of a tensor, or its packed matrix."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | PackedMatrix:
        """Some rows of a tensor."""
        ...


def parameter_name(path: tuple[Any, ...]) -> str:
    """The name of a parameter at a path of a model's pytree, such as ``layers.mlp.up_proj.weight``."""
    return ".".join(key.name for key in path if key.name != "value")


def read_parameters(
    abstract: Decoder, tensors: TensorSource, port: Port, source: str, mesh: Mesh | None = None
) -> Decoder:
    """`abstract` with the values of `tensors`, on the devices of `mesh`.

    Each parameter looks for its tensor, so that a missing tensor is noticed; a tensor that no parameter has is refused
    too. Where the rows of a tensor are split over devices, a process reads only the rows of its own devices.

    Raises:
        CheckpointError: a tensor is missing, has another shape, has values that are not finite, or is not the model's.
    """
    names, read_names = set(tensors.names()), set()
    left_out = {**UNUSED_TENSORS, **TASK_HEADS, **port.left_out}
    tied = port.tensor_of(abstract.config, "lm_head.weight").tensor if abstract.config.tie_word_embeddings else None

    def stored(name: str, shape: tuple[int, ...], layer: int | None = None) -> Any:
        """A parameter, of one layer if it has layers: a packed matrix, or an array whose rows are read on demand."""
        tensor, first, _, total = port.tensor_of(abstract.config, name, layer)
        if name == "embed_tokens.weight" and tensor not in names and tied:
            tensor = tied  # one of two equal matrices is enough
        expected = (total or shape[0], *shape[1:])
        if tensor not in names:
            raise CheckpointError(f"{source}: expected a tensor {tensor} of shape {expected}; found none.")
        if tensors.shape(tensor) != expected:
            raise CheckpointError(
                f"{source}, tensor {tensor}: expected shape {expected}; found {tensors.shape(tensor)}."
            )
        read_names.add(tensor)

        def read(start: int, stop: int) -> Any:
            start, stop = first + start, first + stop
            is_all = (start, stop) == (0, expected[0])
            values = tensors.read(tensor) if is_all else tensors.read_rows(tensor, start, stop)
            _check(values, f"{source}, tensor {tensor}")
            return values

        if tensors.is_packed(tensor):
            if len(shape) != 2:
                raise CheckpointError(f"{source}, tensor {tensor}: expected values, as of a vector; found codes.")
            return read(0, shape[0])
        array = _FileArray(shape, read)
        return BFloat16(array) if array.dtype == np.uint16 else array

    def parameter(path: tuple[Any, ...], struct: jax.ShapeDtypeStruct) -> Any:
        name = parameter_name(path)
        if name.startswith("layers."):
            return _stacked(name, lambda layer: stored(name, struct.shape[1:], layer), struct.shape, mesh)
        return jax.tree.map(lambda part: _unstacked(name, part, mesh), stored(name, struct.shape))

    model = jax.tree_util.tree_map_with_path(parameter, abstract)
    unread = names - read_names - {tied}
    unknown = sorted(unread.difference(*(fnmatch.filter(unread, pattern) for pattern in left_out)))
    unknown = [name for name in unknown if not _adds_nothing(tensors, name)]
    if unknown:
        raise CheckpointError(
            f"{source}: expected only tensors that the model has; found {', '.join(unknown[:4])}"
            f"{f' and {len(unknown) - 4} more' if len(unknown) > 4 else ''}. They could change the output."
        )
    for pattern, reason in left_out.items():
        if count := len(fnmatch.filter(unread, pattern)):
            LOG.warning("%s: left out %d tensors %s: %s", source, count, pattern, reason)
    return model


def _adds_nothing(tensors: TensorSource, name: str) -> bool:
    """Whether a tensor is a bias of zeros, which old files of GPTQ have where the model has none."""
    values = tensors.read(name) if name.endswith(".bias") and len(tensors.shape(name)) == 1 else None
    return isinstance(values, np.ndarray) and not values.any()


def _check(values: np.ndarray | PackedMatrix, place: str) -> None:
    if isinstance(values, np.ndarray) and values.dtype not in FLOATS:
        raise CheckpointError(
            f"{place}: expected values of {', '.join(map(str, FLOATS))}; found {values.dtype}. "
            "If it is quantised, config.json should say how, under quantization_config."
        )
    if not (values.is_finite() if isinstance(values, PackedMatrix) else np.isfinite(values).all()):
        raise CheckpointError(f"{place}: expected finite values; found NaN or infinity.")


class _FileArray:
    """An array in a file, whose rows are read on demand; of a matrix of bfloat16, the bits are read."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray]) -> None:
        self.shape, self._read = shape, read
        dtype = read(0, 0).dtype
        self.dtype = np.dtype(np.uint16) if len(shape) == 2 and dtype == ml_dtypes.bfloat16 else dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return self._read(start, stop).view(self.dtype)


def _stacked(name: str, stored: Callable[[int], Any], shape: tuple[int, ...], mesh: Mesh | None) -> Any:
    """The values of all layers on a leading axis; a layer is released as soon as it is in its place.

    Matrices of unlike formats are in a stack for each; vectors are widened to one dtype.
    """
    if len(shape) == 2:
        vectors = list(map(stored, range(shape[0])))
        stack = _placed(name, shape, common_dtype(vector.dtype for vector in vectors), mesh)
        for layer, vector in enumerate(vectors):
            stack.write(vector, layer)
        return stack.array()
    places, stacks = StackPlaces(), []
    for layer in range(shape[0]):
        matrix = stored(layer)
        index, place = places.add(matrix)
        arrays = jax.tree.leaves(matrix)
        if index == len(stacks):
            # There is room for all layers that may follow, of which only what is written takes memory.
            stacks.append([_placed(name, (shape[0] - layer, *array.shape), array.dtype, mesh) for array in arrays])
        for placed, array in zip(stacks[index], arrays, strict=True):
            placed.write(array, place)
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
