"""A model's parameters from a checkpoint's tensors: each read once, straight to its place in the stack of layers."""

import fnmatch
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from jaxlin.decoder import Decoder
from jaxlin.errors import CheckpointError
from jaxlin.packed import BFloat16, Packed
from jaxlin.parallel import Placed, sharding_of
from jaxlin.port import Port, Rows

LOG = logging.getLogger("jaxlin")

FLOATS = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))
"""The dtypes of weights that are computed with as they are stored."""


@runtime_checkable
class Tensors(Protocol):
    """A checkpoint under Hugging Face's names, whatever its format."""

    def names(self) -> Iterable[str]:
        """The tensors there are."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one."""
        ...

    def read(self, name: str) -> np.ndarray | Packed:
        """The values of one."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | Packed:
        """Some rows of one."""
        ...


def filled(abstract: Decoder, tensors: Tensors, port: Port, source: str, mesh: Mesh | None = None) -> Decoder:
    """`abstract` with the values of `tensors`, on the devices of `mesh`.

    The parameter tree drives the reading, so that a missing tensor cannot go unseen; what it did not ask for is
    refused too.

    Raises:
        CheckpointError: a tensor that is missing, of another shape, not finite, or that the model does not have.
    """
    there, used = set(tensors.names()), set()
    ignored = set(port.left_out)
    if abstract.config.tie_word_embeddings:
        ignored.add(f"{port.prefix}lm_head.weight")

    def one(name: str | Rows, shape: tuple[int, ...]) -> np.ndarray | Packed:
        rows = name if isinstance(name, Rows) else None
        tensor = name.tensor if isinstance(name, Rows) else name
        whole = shape if rows is None else (rows.total, *shape[1:])
        if tensor not in there:
            raise CheckpointError(f"{source}: expected a tensor {tensor} of shape {whole}; found none.")
        if tensors.shape(tensor) != whole:
            raise CheckpointError(f"{source}, tensor {tensor}: expected shape {whole}; found {tensors.shape(tensor)}.")
        used.add(tensor)
        values = tensors.read(tensor) if rows is None else tensors.read_rows(tensor, rows.start, rows.stop)
        if isinstance(values, np.ndarray) and values.dtype not in FLOATS:
            raise CheckpointError(
                f"{source}, tensor {tensor}: expected values of {', '.join(map(str, FLOATS))}; found {values.dtype}. "
                "If it is quantised, config.json should say how, under quantization_config."
            )
        if not (values.is_finite() if isinstance(values, Packed) else np.isfinite(values).all()):
            raise CheckpointError(f"{source}, tensor {tensor}: expected finite values; found NaN or infinity.")
        if isinstance(values, np.ndarray) and values.dtype == ml_dtypes.bfloat16 and values.ndim == 2:
            return BFloat16(values.view(np.uint16))
        return values

    def parameter(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        name = ".".join(key.name for key in path if key.name != "value")
        if not name.startswith("layers."):
            value = one(tensor_of(name), leaf.shape)

            def put(leaf: Any) -> jax.Array:
                return jax.device_put(leaf, sharding_of(mesh, name, np.shape(leaf)), may_alias=True)

            return jax.tree.map(put, value)
        return _stacked(name, lambda layer: one(tensor_of(name, layer), leaf.shape[1:]), leaf.shape[0], mesh)

    renamed = port.names(abstract.config)

    def tensor_of(name: str, layer: int | None = None) -> str | Rows:
        found = renamed.get(name.removeprefix("layers."), name.removeprefix("layers."))
        before = port.prefix + ("" if name.startswith("lm_head.") else "model.")
        before += "" if layer is None else f"layers.{layer}."
        return before + found if isinstance(found, str) else found._replace(tensor=before + found.tensor)

    model = jax.tree_util.tree_map_with_path(parameter, abstract)
    extra = [n for n in sorted(there - used) if not any(fnmatch.fnmatch(n, pattern) for pattern in ignored)]
    if extra:
        raise CheckpointError(
            f"{source}: expected only tensors that the model has; found {', '.join(extra[:4])}"
            f"{f' and {len(extra) - 4} more' if len(extra) > 4 else ''}. They could change the output."
        )
    for pattern, why in port.left_out.items():
        if count := len(fnmatch.filter(there - used, pattern)):
            LOG.warning("%s: left out %d tensors %s: %s", source, count, pattern, why)
    return model


def _stacked(name: str, read: Callable[[int], np.ndarray | Packed], depth: int, mesh: Mesh | None) -> Any:
    """The values of all layers on a leading axis; a layer is let go of once it is in its place."""
    leaves, structure = jax.tree.flatten(read(0))
    form = [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves]
    placed = [_placed(name, (depth, *shape), dtype, mesh) for shape, dtype in form]
    for place, leaf in zip(placed, leaves, strict=True):
        place[0] = leaf
    for layer in range(1, depth):
        leaves, found = jax.tree.flatten(read(layer))
        if found != structure or [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves] != form:
            return _widened(name, read, depth, mesh)
        for place, leaf in zip(placed, leaves, strict=True):
            place[layer] = leaf
    return structure.unflatten([place.array() for place in placed])


def _widened(name: str, read: Callable[[int], np.ndarray | Packed], depth: int, mesh: Mesh | None) -> jax.Array:
    """A stack whose layers are not in one format, as plain values of the widest dtype."""
    values = list(map(read, range(depth)))
    if any(isinstance(value, Packed) and not isinstance(value, BFloat16) for value in values):
        warnings.warn(
            f"{name} is not in one format in all layers. It is unpacked and takes more memory than the file.",
            stacklevel=2,
        )
    placed = _placed(name, (depth, *values[0].shape), np.result_type(*(value.dtype for value in values)), mesh)
    for layer, value in enumerate(values):
        placed[layer] = value[...]
    return placed.array()


def _placed(name: str, shape: tuple[int, ...], dtype: Any, mesh: Mesh | None) -> Placed:
    return Placed(sharding_of(mesh, name, shape), shape, dtype)
