"""The memory that a model will take, from its config alone: no weight is read and nothing is computed."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlin import plots
from jaxlin.checkpoint.config import ConfigReader, without_keys
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.checkpoint.hub import config_file
from jaxlin.common.errors import CheckpointError, ConfigError, JaxlinError
from jaxlin.common.files import read_json
from jaxlin.common.printable import quoted
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.loading.model import checked_dtype
from jaxlin.loading.parameters import leading_axes, parameter_name
from jaxlin.loading.registry import port_for
from jaxlin.loading.translated_gguf import TranslatedGGUF
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.stack import layers_at
from jaxlin.porting.port import Port
from jaxlin.porting.tensor_rows import EXPERT
from jaxlin.quantized import PackedMatrix, quantized_format
from jaxlin.quantized.bfloat16 import abstract_array
from jaxlin.quantized.mixed import abstract_stack
from jaxlin.results import Result


@dataclass(frozen=True, eq=False)
class MemoryPlan(Result):
    """The memory that a local linear map takes, in bytes except for the first three attributes.

    Attributes:
        parameters: the number of parameters.
        tokens: the length of the prompt.
        block: how many rows of J are computed together.
        weights: the weights, as they are stored.
        frozen: the frozen factors of the prompt.
        forward: the temporary memory of the forward pass that records the frozen factors.
        rows: the temporary memory of a block of rows, and the rows themselves.
        jacobian: the dense J.
    """

    PROPERTIES: ClassVar = ("operator", "peak")

    parameters: int
    tokens: int
    block: int
    weights: int
    frozen: int
    forward: int
    rows: int
    jacobian: int

    @property
    def operator(self) -> int:
        """The peak while rows, products or attributions are computed and the dense J is not stored."""
        return self.weights + self.frozen + max(self.forward, self.rows)

    @property
    def peak(self) -> int:
        """The peak while the dense J is computed and stored."""
        return self.weights + self.frozen + max(self.forward, self.rows + self.jacobian)

    def _draw(self, ax: Any) -> None:
        """Bars of the parts and the peaks, in GB."""
        parts = ("weights", "frozen", "forward", "rows", "jacobian", "operator", "peak")
        labels = [*parts[:-2], "peak without a dense J", "peak with a dense J"]
        plots.bars(ax, np.array([getattr(self, part) / 1e9 for part in parts]), labels)
        plots.write(ax, title=f"Memory for {self.tokens} tokens", xlabel="GB")


def memory_plan(
    name_or_config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    tokens: int,
    dtype: Any = "float32",
    rule: Rule = "gate",
    block: int | None = None,
    memory: int | None = None,
    revision: str | None = None,
    remat: bool = False,
    ignore_config_keys: Sequence[str] = (),
) -> MemoryPlan:
    """The memory that the weights, the frozen factors and a block of rows will take, before any weight is read.

    The programs are compiled for the present device from shapes alone, and the compiler says how much memory they take.
    Whether the unembedding is a matrix of its own is taken from the config: see `jaxlin.loading.unembedding`.

    Args:
        name_or_config: a hub id or a directory, of which only config.json is read, or the contents of a config.json, or
            a ``.gguf`` file, of which only the header is read.
        tokens: the length of the prompt.
        dtype: the dtype of the computation.
        rule: the freeze rule.
        block: how many rows of J are computed together; None for the default of `LocalMap.jacobian`.
        memory: the available bytes; the block is halved until a block of rows fits beside the weights.
        revision: a branch, tag or commit of a hub id.
        remat: whether the map computes frozen factors again, see `jaxlin.freeze`.
        ignore_config_keys: as in `jaxlin.load`.

    Raises:
        CheckpointError: there is no checkpoint of this name, or the file is damaged.
        ConfigError: no port understands the config.
        JaxlinError: not even one row fits in `memory`; `tokens` or `block` is below 1; there is no such dtype; or it is
            float64 without x64.
    """
    if tokens < 1:
        raise JaxlinError(f"Tokens: expected at least 1; found {tokens}.")
    if block is not None and block < 1:
        raise JaxlinError(f"Block: expected at least 1 row; found {block}.")
    model = shapes_of(name_or_config, revision, checked_dtype(dtype), rule, ignore_config_keys)
    x = jax.eval_shape(type(model).embed, model, jax.ShapeDtypeStruct((tokens,), np.int32))

    def map_at(model: Decoder, x: Any) -> LocalMap:
        return local_map(model, x, remat=remat)

    lmap = jax.eval_shape(map_at, model, x)
    weights, frozen = _nbytes(model), _nbytes(lmap.frozen)
    d, itemsize = lmap.shape[0], lmap.output.dtype.itemsize
    forward, count = _temporary(map_at, model, x), min(block or lmap.default_block, d)
    while True:
        u = jax.ShapeDtypeStruct((count, d), lmap.output.dtype)
        rows = _temporary(LocalMap.rmatvec, lmap, u) + count * tokens * d * itemsize
        if memory is None or weights + frozen + rows <= memory:
            break
        if count == 1:
            raise JaxlinError(
                f"Memory: expected at least {(weights + frozen + rows) / 1e9:.3f} GB for the weights and one row of J; "
                f"found {memory / 1e9:.3f}."
            )
        count = -(-count // 2)
    matrices = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, PackedMatrix))
    parameters = sum(math.prod(matrix.shape) for matrix in matrices)
    return MemoryPlan(parameters, tokens, count, weights, frozen, forward, rows, d * tokens * d * itemsize)


def shapes_of(
    name_or_config: str | os.PathLike[str] | Mapping[str, Any],
    revision: str | None,
    dtype: str,
    rule: Rule,
    ignore_config_keys: Sequence[str] = (),
) -> Decoder:
    """The model that would be loaded, with shapes in the place of values."""
    if isinstance(name_or_config, Mapping):
        return abstract_model(without_keys(name_or_config, ignore_config_keys, "config"), "config", dtype, rule)
    path = config_file(name_or_config, revision)
    if path.suffix == ".gguf":
        file = GGUFFile(path)
        file.config = without_keys(file.config, ignore_config_keys, str(path))
        return _abstract_gguf(TranslatedGGUF(file), str(path), dtype, rule)
    return abstract_model(without_keys(read_json(path), ignore_config_keys, str(path)), str(path), dtype, rule)


def abstract_model(config: Mapping[str, Any], source: str, dtype: str, rule: Rule) -> Decoder:
    """The model of a config.json, with shapes in the place of values, its weights in the format that it names."""
    reader = ConfigReader(config, source)
    quantization = quantized_format(reader)
    port = port_for(reader.peek("model_type"))
    model, stored_dtype = _decoder(reader, port, dtype, rule), _stored_dtype(config, source)

    def matrix(tensor: str, shape: tuple[int, ...], in_layer: bool) -> Any:
        if in_layer and len(shape) == 2 and quantization and quantization.quantizes(tensor.removesuffix(".weight")):
            return quantization.abstract_matrix((shape[0], shape[1]), stored_dtype)
        return abstract_array(shape, stored_dtype)

    return _as_stored(model, port, matrix)


def _abstract_gguf(gguf: TranslatedGGUF, source: str, dtype: str, rule: Rule) -> Decoder:
    """The model of a GGUF file, with shapes in the place of values, its weights in the types that the header gives."""
    reader = ConfigReader(gguf.config, source)
    port = gguf.adapted(port_for(reader.peek("model_type")))

    model = _decoder(reader, port, dtype, rule)

    def matrix(tensor: str, shape: tuple[int, ...], in_layer: bool) -> Any:
        del in_layer
        if tensor not in gguf.names():
            raise CheckpointError(f"{source}: expected a tensor {tensor}; found none.")
        return gguf.abstract_matrix(tensor, shape)

    return _as_stored(model, port.in_layout_of(model.config, gguf.names(), source), matrix)


def _decoder(reader: ConfigReader, port: Port, dtype: str, rule: Rule) -> Decoder:
    """The model of a config.json, with shapes in the place of values that are not stored in any format."""
    config = port.translate(reader)
    reader.finish()
    return jax.eval_shape(lambda: port.model(config, rngs=nnx.Rngs(0), rule=rule, dtype=dtype))


def _as_stored(model: Decoder, port: Port, matrix: Callable[[str, tuple[int, ...], bool], Any]) -> Decoder:
    """`model` with each parameter in the format that it is stored in.

    Args:
        model: with shapes in the place of values.
        port: the port of the checkpoint.
        matrix: an array or a packed matrix without its values, from the name of its tensor, from its shape, and from
            whether it is part of a layer; of experts, those of one.
    """

    def stored(path: tuple[Any, ...], parameter: Any) -> Any:
        name = parameter_name(path)
        if not name.startswith("layers."):
            return matrix(port.tensor_of(model.config, name).tensor, parameter.shape, False)
        depth, *experts = parameter.shape[: leading_axes(name)]
        shape = parameter.shape[1 + len(experts) :]
        places = [port.tensor_of(model.config, name, layer) for layer in layers_at(path, depth)]
        if places[0].constant is not None:
            return jax.ShapeDtypeStruct(parameter.shape, jnp.float32)
        arrays = [matrix(place.tensor.replace(EXPERT, "0"), shape, True) for place in places]
        return abstract_stack(arrays, experts)

    return jax.tree_util.tree_map_with_path(stored, model)


def _stored_dtype(config: Mapping[str, Any], source: str) -> str:
    """The dtype that a config.json gives for its weights.

    Raises:
        ConfigError: it is no dtype of floats.
    """
    text = config.get("text_config")
    parts = (config, text if isinstance(text, Mapping) else {})
    name = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), "float32")
    try:
        if isinstance(name, str) and jnp.issubdtype(jnp.dtype(name), jnp.floating):
            return name
    except TypeError:
        pass
    raise ConfigError(f"{source}, key 'dtype': expected a dtype of floats, such as bfloat16; found {quoted(name)}.")


def _nbytes(tree: Any) -> int:
    return sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in jax.tree.leaves(tree))


def _temporary(function: Any, *shapes: Any) -> int:
    """The bytes that a program takes beside its arguments and results, as the compiler says."""
    analysis: Any = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return analysis.temp_size_in_bytes
