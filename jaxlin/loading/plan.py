"""What a model will take in memory, from its config alone: nothing is read and nothing is computed."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlin.checkpoint.config import ConfigReader, without_keys
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.checkpoint.hub import config_file
from jaxlin.common.errors import CheckpointError, ConfigError, JaxlinError
from jaxlin.common.files import read_json
from jaxlin.common.printable import quoted
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.loading.model import checked_dtype
from jaxlin.loading.registry import port_for
from jaxlin.loading.translated_gguf import TranslatedGGUF
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.porting.port import TensorRows
from jaxlin.quantized import BFloat16, PackedMatrix
from jaxlin.quantized.methods import quantized_format
from jaxlin.quantized.mixed import stacked_form


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, but for the first three.

    Attributes:
        parameters: how many there are.
        tokens: the length of the prompt.
        block: rows of J computed together.
        weights: as they are stored.
        frozen: what is held for the prompt.
        forward: the temporary memory of the forward pass that records them.
        rows: the temporary memory of a block of rows, and the rows themselves.
        jacobian: the dense J.
    """

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
        """The most that is held at a time while rows, products or attributions are computed and no J is kept."""
        return self.weights + self.frozen + max(self.forward, self.rows)

    @property
    def peak(self) -> int:
        """The most that is held at a time, J in memory included."""
        return self.weights + self.frozen + max(self.forward, self.rows + self.jacobian)

    def to_dict(self) -> dict[str, int]:
        """All of it, for JSON."""
        return {**asdict(self), "operator": self.operator, "peak": self.peak}


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
    """What the weights, the frozen factors and a block of rows will take, before anything is read.

    The programs are compiled for the present device from shapes alone, and it is the compiler that says what they take.
    Whether the unembedding is a matrix of its own is taken from what a config claims: see `jaxlin.loading.unembedding`.

    Args:
        name_or_config: a hub id or a directory, of which only config.json is read, or its contents; or a ``.gguf``
            file, of which only the header is.
        tokens: the length of the prompt.
        dtype: what is computed in.
        rule: the freeze rule.
        block: rows of J computed together; what `LocalMap.jacobian` chooses unless given.
        memory: bytes there are; the block is halved until a block of rows fits beside the weights.
        revision: of a hub id.
        remat: of the map, see `jaxlin.freeze`.
        ignore_config_keys: as in `jaxlin.load`.

    Raises:
        CheckpointError: nothing of this name, or a damaged file.
        ConfigError: a config that no port understands.
        JaxlinError: no rows fit in `memory`; `tokens` or `block` is no positive number; or no such dtype, or float64
            without x64.
    """
    if tokens < 1:
        raise JaxlinError(f"Tokens: expected at least 1; found {tokens}.")
    if block is not None and block < 1:
        raise JaxlinError(f"Block: expected at least 1 row; found {block}.")
    model = shapes_of(name_or_config, revision, checked_dtype(dtype), rule, ignore_config_keys)
    x = jax.ShapeDtypeStruct((tokens, model.config.hidden_size), jnp.dtype(model.dtype))

    def held_at(model: Decoder, x: Any) -> LocalMap:
        return local_map(model, x, remat=remat)

    lmap = jax.eval_shape(held_at, model, x)
    weights, held = _nbytes(model), _nbytes(lmap.frozen)
    d, size = lmap.shape[0], lmap.output.dtype.itemsize
    count = min(block or lmap.default_block, d)
    forward = _temporary(held_at, model, x)
    while True:
        u = jax.ShapeDtypeStruct((count, d), lmap.output.dtype)
        rows = _temporary(LocalMap.rmatvec, lmap, u) + count * tokens * d * size
        if memory is None or weights + held + rows <= memory:
            break
        if count == 1:
            raise JaxlinError(
                f"Memory: expected at least {(weights + held + rows) / 1e9:.3f} GB for the weights and one row of J; "
                f"found {memory / 1e9:.3f}."
            )
        count = -(-count // 2)
    matrices = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, PackedMatrix))
    parameters = sum(math.prod(matrix.shape) for matrix in matrices)
    return MemoryPlan(parameters, tokens, count, weights, held, forward, rows, d * tokens * d * size)


def shapes_of(
    name_or_config: str | os.PathLike[str] | Mapping[str, Any],
    revision: str | None,
    dtype: str,
    rule: Rule,
    ignore_config_keys: Sequence[str] = (),
) -> Decoder:
    """The model that would be loaded, of shapes without values."""
    if isinstance(name_or_config, Mapping):
        return abstract_model(without_keys(name_or_config, ignore_config_keys, "config"), "config", dtype, rule)
    path = config_file(name_or_config, revision)
    if path.suffix == ".gguf":
        file = GGUFFile(path)
        file.config = without_keys(file.config, ignore_config_keys, str(path))
        return _abstract_gguf(TranslatedGGUF(file), str(path), dtype, rule)
    return abstract_model(without_keys(read_json(path), ignore_config_keys, str(path)), str(path), dtype, rule)


def _abstract_gguf(gguf: TranslatedGGUF, source: str, dtype: str, rule: Rule) -> Decoder:
    """The same of a GGUF file, whose header says the format of every tensor."""
    model = _plain(gguf.config, source, dtype, rule)
    port = gguf.adapted(port_for(gguf.config["model_type"]))

    def as_stored(path: tuple[Any, ...], leaf: Any) -> Any:
        name = ".".join(key.name for key in path if key.name != "value")

        def form(layer: int | None, rows: int) -> Any:
            found = port.tensor_of(model.config, name, layer)
            tensor = found.tensor if isinstance(found, TensorRows) else found
            if tensor not in gguf.names():
                raise CheckpointError(f"{source}: expected a tensor {tensor}; found none.")
            return gguf.form(tensor, rows)

        if not _in_layers(path):
            return form(None, leaf.shape[0])
        return stacked_form([form(layer, leaf.shape[1]) for layer in range(leaf.shape[0])])

    return jax.tree_util.tree_map_with_path(as_stored, model)


def abstract_model(said: Mapping[str, Any], source: str, dtype: str, rule: Rule) -> Decoder:
    """A model of shapes without values, its weights in the format that a config names."""
    reader = ConfigReader(said, source)
    quantization = quantized_format(reader)
    model, port = _plain(said, source, dtype, rule), port_for(said.get("model_type"))
    stored = _stored_dtype(said, source)

    def plain(shape: tuple[int, ...]) -> Any:
        if len(shape) == 2 and stored == "bfloat16":
            return BFloat16(jax.ShapeDtypeStruct(shape, jnp.uint16))
        return jax.ShapeDtypeStruct(shape, jnp.dtype(stored))

    def as_stored(path: tuple[Any, ...], leaf: Any) -> Any:
        if not _in_layers(path):
            return plain(leaf.shape)
        name, (depth, *shape) = ".".join(key.name for key in path if key.name != "value"), leaf.shape

        def form(layer: int) -> Any:
            if quantization is None or len(shape) != 2:
                return plain(tuple(shape))
            found = port.tensor_of(model.config, name, layer)
            module = (found.tensor if isinstance(found, TensorRows) else found).removesuffix(".weight")
            return quantization.planned(tuple(shape), stored) if quantization.converts(module) else plain(tuple(shape))

        return stacked_form(list(map(form, range(depth))))

    return jax.tree_util.tree_map_with_path(as_stored, model)


def _stored_dtype(said: Mapping[str, Any], source: str) -> str:
    """What a config says that the weights are stored in.

    Raises:
        ConfigError: no dtype of floats.
    """
    text = said.get("text_config")
    parts = (said, text if isinstance(text, Mapping) else {})
    name = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), "float32")
    try:
        if isinstance(name, str) and jnp.issubdtype(jnp.dtype(name), jnp.floating):
            return name
    except TypeError:
        pass
    raise ConfigError(f"{source}, key 'dtype': expected a dtype of floats, as bfloat16; found {quoted(name)}.")


def _in_layers(path: tuple[Any, ...]) -> bool:
    return getattr(path[0], "name", None) == "layers"


def _plain(said: Mapping[str, Any], source: str, dtype: str, rule: Rule) -> Decoder:
    port = port_for(said.get("model_type"))
    reader = ConfigReader(said, source)
    config = port.translate(reader)
    reader.leave_out("quantization_config")  # it says how the weights are stored, not what is computed
    reader.finish()
    return jax.eval_shape(lambda: port.model(config, rngs=nnx.Rngs(0), rule=rule, dtype=dtype))


def _nbytes(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _temporary(function: Any, *shapes: Any) -> int:
    """What the compiler says a program takes beside its arguments and results."""
    analysis: Any = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return analysis.temp_size_in_bytes
