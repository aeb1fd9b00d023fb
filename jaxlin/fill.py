"""A model's parameters from a checkpoint's tensors: each read once, straight to its place in the stack of layers."""

import fnmatch
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxlin.decoder import Decoder
from jaxlin.errors import CheckpointError
from jaxlin.packed import BFloat16, Packed
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


def filled(abstract: Decoder, tensors: Tensors, port: Port, source: str) -> Decoder:
    """`abstract` with the values of `tensors`.

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
            return jax.tree.map(jnp.asarray, one(tensor_of(name), leaf.shape))
        depth = leaf.shape[0]
        return _stacked(name, (one(tensor_of(name, i), leaf.shape[1:]) for i in range(depth)), depth)

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


def _stacked(name: str, values: Iterator[np.ndarray | Packed], depth: int) -> Any:
    """The values of all layers on a leading axis; a layer is let go of once it is in its place."""
    first = next(values)
    leaves, structure = jax.tree.flatten(first)
    stacks = [np.empty((depth, *np.shape(leaf)), np.asarray(leaf).dtype) for leaf in leaves]
    for stack, leaf in zip(stacks, leaves, strict=True):
        stack[0] = leaf
    for layer, value in enumerate(values, 1):
        leaves, found = jax.tree.flatten(value)
        if found != structure:
            stacks, structure = [_widened(name, structure.unflatten(stacks), layer)], jax.tree.structure(0)
        if structure == jax.tree.structure(0):
            leaves = [np.asarray(value[...] if isinstance(value, Packed) else value)]
        for i, leaf in enumerate(leaves):
            if (wider := np.promote_types(stacks[i].dtype, np.asarray(leaf).dtype)) != stacks[i].dtype:
                stacks[i] = stacks[i].astype(wider)  # a file may keep some layers in more bits
            stacks[i][layer] = leaf
    return jax.tree.map(jnp.asarray, structure.unflatten(stacks))


def _widened(name: str, stack: Any, done: int) -> np.ndarray:
    """A stack whose next layer has another format, as plain values."""
    if not isinstance(stack, Packed):
        return stack
    if not isinstance(stack, BFloat16):
        warnings.warn(
            f"{name} is not in one format in all layers: layer {done} differs from those before it. It is unpacked "
            "and takes more memory than the file.",
            stacklevel=2,
        )
    # The layers that are still to come are not written yet, and any bytes unpack to something.
    return np.array(stack[...])
