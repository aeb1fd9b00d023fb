"""The shapes of a model before it is loaded, from its config.json and the headers of its weights."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlin.checkpoint.config import ConfigReader, without_keys
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.checkpoint.hub import config_file
from jaxlin.common.errors import CheckpointError, ConfigError
from jaxlin.common.files import read_json
from jaxlin.common.printable import quoted
from jaxlin.loading.joined import joined
from jaxlin.loading.parameters import leading_axes, parameter_name
from jaxlin.loading.registry import port_for
from jaxlin.loading.stored import TensorSource
from jaxlin.loading.translated_gguf import TranslatedGGUF
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.modules import without_values
from jaxlin.nn.stack import layers_at
from jaxlin.porting.port import Port
from jaxlin.porting.tensor_rows import EXPERT, TensorRows
from jaxlin.quantized import quantized_format
from jaxlin.quantized.bfloat16 import abstract_array
from jaxlin.quantized.format import QuantizedFolder
from jaxlin.quantized.mixed import abstract_stack

NOT_LINEAR = (".gate.weight", ".router.weight", ".conv1d.weight")
"""The ends of the names of matrices that belong to no linear layer, routers and convolutions, which no program
quantises."""


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
    config = without_keys(read_json(path), ignore_config_keys, str(path))
    return abstract_model(config, str(path), dtype, rule, _headers(path.parent))


def _headers(folder: Path) -> CheckpointFolder | None:
    """The weights beside a config.json, of which only the headers are read here; None without them, or if some lack."""
    try:
        return CheckpointFolder(folder) if any(folder.glob("*.safetensors")) else None
    except CheckpointError:
        return None  # of a download that is not complete; what the config says is then all there is


def abstract_model(
    config: Mapping[str, Any], source: str, dtype: str, rule: Rule, folder: CheckpointFolder | None = None
) -> Decoder:
    """The model of a config.json, with shapes in the place of values, its weights in the format that they have.

    Args:
        config: the contents of the config.json.
        source: its path, for messages.
        dtype: the dtype of the computation.
        rule: the freeze rule.
        folder: the weights, whose headers say what is packed; without them the config does, as far as it goes.
    """
    reader = ConfigReader(config, source)
    quantization = quantized_format(reader)
    port, packed = port_for(reader.peek("model_type")), None
    tensors: TensorSource | None = folder
    if folder is not None:
        if quantization is not None:
            tensors = packed = QuantizedFolder(folder, quantization)
        port = port.as_named((packed or folder).names(), source)
    model, stored_dtype = _decoder(reader, port, dtype, rule), _stored_dtype(config, source)
    if tensors is not None:
        tensors = joined(tensors, port, model.config)
        port = port.in_layout_of(model.config, tensors.names(), source)

    def matrix(place: TensorRows, shape: tuple[int, ...], in_layer: bool) -> Any:
        tensor, is_stored = place.tensor, tensors is not None and place.tensor in tensors.names()
        module = None if packed is None else packed.module(tensor)
        if is_stored:
            is_packed = module is not None
        else:
            is_packed = in_layer and len(shape) == 2 and not tensor.endswith(NOT_LINEAR)
            is_packed &= quantization is not None and quantization.quantizes(tensor.removesuffix(".weight"))
        if quantization is not None and is_packed and len(shape) == 2:
            if isinstance(place.rows, slice) and place.rows == slice(None):
                return quantization.abstract_matrix((shape[0], shape[1]), stored_dtype, module)
            total = place.total or shape[0], shape[1]
            return quantization.abstract_rows(tensor, total, place.indices(shape[0]), stored_dtype, module)
        if tensors is not None and is_stored:
            return abstract_array(shape, tensors.read_slice(tensor, (slice(0, 0),)).dtype)
        return abstract_array(shape, stored_dtype)

    return _as_stored(model, port, matrix)


def _abstract_gguf(gguf: TranslatedGGUF, source: str, dtype: str, rule: Rule) -> Decoder:
    """The model of a GGUF file, with shapes in the place of values, its weights in the types that the header gives."""
    reader = ConfigReader(gguf.config, source)
    port = gguf.adapted(port_for(reader.peek("model_type")))

    model = _decoder(reader, port, dtype, rule)

    def matrix(place: TensorRows, shape: tuple[int, ...], in_layer: bool) -> Any:
        del in_layer
        if place.tensor not in gguf.names():
            raise CheckpointError(f"{source}: expected a tensor {place.tensor}; found none.")
        return gguf.abstract_matrix(place.tensor, shape)

    return _as_stored(model, port.in_layout_of(model.config, gguf.names(), source), matrix)


def _decoder(reader: ConfigReader, port: Port, dtype: str, rule: Rule) -> Decoder:
    """The model of a config.json, with shapes in the place of values that are not stored in any format."""
    config = port.translate(reader)
    reader.finish()
    return without_values(lambda rngs: port.model(config, rngs=rngs, rule=rule, dtype=dtype))


def _as_stored(model: Decoder, port: Port, matrix: Callable[[TensorRows, tuple[int, ...], bool], Any]) -> Decoder:
    """`model` with each parameter in the format that it is stored in.

    Args:
        model: with shapes in the place of values.
        port: the port of the checkpoint.
        matrix: an array or a packed matrix without its values, from where it is stored, from its shape, and from
            whether it is part of a layer; of experts, those of one.
    """

    def stored(path: tuple[Any, ...], parameter: Any) -> Any:
        name = parameter_name(path)
        if not name.startswith("layers."):
            return matrix(port.tensor_of(model.config, name), parameter.shape, False)
        depth, *experts = parameter.shape[: leading_axes(name)]
        shape = parameter.shape[1 + len(experts) :]
        places = [port.tensor_of(model.config, name, layer) for layer in layers_at(path, depth)]
        if places[0].constant is not None:
            return jax.ShapeDtypeStruct(parameter.shape, jnp.float32)
        arrays = [matrix(replace(p, tensor=p.tensor.replace(EXPERT, "0")), shape, True) for p in places]
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
