"""A GGUF checkpoint as if it were a Hugging Face checkpoint: llama.cpp's metadata and tensor names, translated."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import nextafter
from typing import Any, NamedTuple

import numpy as np

from jaxlin.checkpoint.config import how_to_ignore
from jaxlin.checkpoint.gguf import GGUFFile, hf_name
from jaxlin.common.errors import ConfigError
from jaxlin.common.printable import quoted
from jaxlin.loading.registry import gguf_port_for
from jaxlin.porting.gguf_keys import LONGROPE, decimal, rope_scaling, unpermuted_rows
from jaxlin.porting.port import Names, Port, places_of
from jaxlin.porting.tensor_rows import TensorRows
from jaxlin.quantized import GGUFBlocks, PackedMatrix
from jaxlin.quantized.bfloat16 import abstract_array
from jaxlin.quantized.gguf import LAYOUTS

_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
"""Metadata below ``{arch}.`` that all architectures have, and the key of config.json that each is."""

_REQUIRED = {"embedding_length", "block_count", "feed_forward_length", "attention.head_count"}
_INTEGERS = _KEYS.keys() - {"rope.freq_base"}
_EPSILONS = {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"}

_FIXED = {"attention.causal": True, "rope.scaling.yarn_ext_factor": 1.0}
"""Metadata that must have this value where it is present."""

_NOT_TRANSLATED = {
    "vocab_size": "the embedding matrix has as many rows",
    "tensor_data_layout": "a name of files of 2023 for the order of the rows, which follows from the architecture",
    "rope.dimension_count": "read with head_dim",
    "pooling_type": "an embedding model pools the decoder's output",
    "attention.value_length": "checked against attention.key_length",
    "rope.scaling.finetuned": "about the training of the model",
    **dict.fromkeys(
        ("rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
        + ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast")
        + ("rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier"),
        "read by rope_scaling",
    ),
}
"""Metadata that is no key of config.json, and the reason."""

_ROPE_TENSORS = ("rope_freqs", *LONGROPE)


class _Part(NamedTuple):
    """The tensor of a file that has one of Hugging Face's: its `rows`, in this order, or all of them if None."""

    tensor: str
    shape: tuple[int, ...]
    rows: np.ndarray | None = None


class TranslatedGGUF:
    """The config and the tensors of a GGUF checkpoint, under Hugging Face's names.

    Attributes:
        config: the contents of the config.json.
    """

    def __init__(self, checkpoint: GGUFFile) -> None:
        self._checkpoint = checkpoint
        arch = checkpoint.config.get("general.architecture")
        try:
            self._port = gguf_port_for(arch)
        except ConfigError as error:
            raise ConfigError(f"{checkpoint.source}: {error}") from error
        names: dict[str, str] = {}
        for tensor in sorted(checkpoint.names()):
            self._place(names, hf_name(tensor, self._port.parts), tensor, tensor)
        self.config = self._translated(str(arch), names)
        self._parts = self._placed(names)

    def _place(self, places: dict[str, Any], name: str, place: Any, tensor: str) -> None:
        """Put `place` under `name`, once: of two tensors with one name, either may be the wrong one."""
        if name in places:
            raise ConfigError(f"{self._checkpoint.source}, tensor {tensor}: expected one tensor for {name}; found two.")
        places[name] = place

    def _translated(self, arch: str, names: Mapping[str, str]) -> dict[str, Any]:
        source, metadata, port = self._checkpoint.source, self._checkpoint.config, self._port
        values = {k.removeprefix(f"{arch}."): decimal(v) for k, v in metadata.items() if k.startswith(f"{arch}.")}
        keys, fixed = {**_KEYS, **port.keys}, {**_FIXED, **port.fixed}
        if unknown := sorted(set(values) - keys.keys() - fixed.keys() - {*port.read} - _NOT_TRANSLATED.keys()):
            raise ConfigError(
                f"{source}: expected only metadata that jaxlin understands; found "
                + ", ".join(f"{arch}.{key} = {quoted(values[key])}"[:120] for key in unknown)
                + f". {how_to_ignore([f'{arch}.{key}' for key in unknown])}"
            )
        for key in sorted(_REQUIRED | (_EPSILONS & (keys.keys() | fixed.keys()))):
            if key not in values:
                raise ConfigError(f"{source}: expected metadata {arch}.{key}; found none.")
        for key, value in fixed.items():
            if values.get(key, value) != value:
                raise ConfigError(f"{source}, {arch}.{key}: expected {value!r}; found {quoted(values[key])}.")
        for key in sorted(_INTEGERS & values.keys()):
            if type(values[key]) is not int or values[key] < 1:
                value = quoted(values[key])
                raise ConfigError(f"{source}, {arch}.{key}: expected an integer of at least 1; found {value}.")
        blocks = {name.split(".")[1] for name in names.values() if name.startswith("blk.")}
        if blocks != set(map(str, range(len(blocks)))) or len(blocks) != values["block_count"]:
            raise ConfigError(
                f"{source}, {arch}.block_count: expected {values['block_count']} blocks of tensors, from blk.0 on; "
                f"found {len(blocks)}."
            )
        if "model.embed_tokens.weight" not in names:
            raise ConfigError(f"{source}: expected a tensor token_embd.weight; found none.")

        config = {keys[key]: value for key, value in values.items() if key in keys}
        config["model_type"] = port.model_type
        config["vocab_size"] = self._checkpoint.shape(names["model.embed_tokens.weight"])[0]
        config["tie_word_embeddings"] = "lm_head.weight" not in names
        first = {name.removeprefix("model.layers.0.").replace("qkv_proj", "q_proj") for name in names}
        config |= {key: True for key, tensor in port.flags.items() if tensor in first}
        config |= self._heads(arch, values, config)
        try:
            if scaling := rope_scaling(values, self._rope_vectors(names)):
                config["rope_scaling"] = scaling
            config |= port.derive(values, config)
        except ValueError as error:
            raise ConfigError(f"{source}, {arch}.{error}.") from error
        return {key: value for key, value in config.items() if value is not None}

    def _rope_vectors(self, names: Mapping[str, str]) -> dict[str, list[float]]:
        """The tensors that divide rotary frequencies."""
        present = (name for name in _ROPE_TENSORS if f"{name}.weight" in names)
        vectors = {name: self._checkpoint.read(f"{name}.weight").astype(float) for name in present}
        for name, divisors in vectors.items():
            if divisors.ndim != 1 or not (np.isfinite(divisors) & (divisors > 0)).all():
                raise ConfigError(
                    f"{self._checkpoint.source}, tensor {name}.weight: expected positive numbers; found others."
                )
        return {name: divisors.tolist() for name, divisors in vectors.items()}

    def _heads(self, arch: str, values: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """`head_dim`, and `partial_rotary_factor` if only a part of each head is rotated."""
        source = self._checkpoint.source
        head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
        if values.get("attention.value_length", head_dim) != head_dim:
            length = quoted(values["attention.value_length"])
            raise ConfigError(f"{source}, {arch}.attention.value_length: expected {head_dim}; found {length}.")
        rotated = values.get("rope.dimension_count", head_dim)
        if not isinstance(rotated, int) or not 0 < rotated <= head_dim:
            raise ConfigError(
                f"{source}, {arch}.rope.dimension_count: expected 1 to {head_dim}; found {quoted(rotated)}."
            )
        if rotated != head_dim and not self._port.partial:
            raise ConfigError(
                f"{source}, {arch}.rope.dimension_count: expected {head_dim}, as this architecture rotates "
                f"whole heads; found {rotated}."
            )
        # The next float above, so that its product with head_dim is not truncated to one feature less.
        share = {} if rotated == head_dim else {"partial_rotary_factor": nextafter(rotated / head_dim, 1)}
        return {"head_dim": head_dim, **share}

    def _placed(self, names: Mapping[str, str]) -> dict[str, _Part]:
        """The tensor of the file, and its rows, that each of Hugging Face's tensors is read from."""
        heads = self.config["num_attention_heads"]
        kv_heads, head_dim = self.config.get("num_key_value_heads", heads), self.config["head_dim"]
        sizes = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        parts: dict[str, _Part] = {}
        for name, tensor in names.items():
            shape = self._checkpoint.shape(tensor)
            module, _, kind = name.rpartition(".")
            if tensor.removesuffix(".weight") in _ROPE_TENSORS:
                continue
            if module.endswith(".self_attn.qkv_proj") and not self._port.fused:
                # The metadata may have any number: rows are listed only if the tensor has as many.
                if shape[0] != (total := sum(sizes.values()) * head_dim):
                    raise ConfigError(
                        f"{self._checkpoint.source}, tensor {tensor}: expected {total} rows; found {shape[0]}."
                    )
                start = 0
                for projection, n in sizes.items():
                    rows, start = np.arange(start, start + n * head_dim), start + n * head_dim
                    part = _Part(tensor, (len(rows), *shape[1:]), rows)
                    self._place(parts, f"{module.removesuffix('qkv_proj')}{projection}.{kind}", part, tensor)
            else:
                self._place(parts, name, _Part(tensor, shape), tensor)
        return {name: self._in_halves(name, part, sizes) for name, part in parts.items()}

    def _in_halves(self, name: str, part: _Part, sizes: Mapping[str, int]) -> _Part:
        projection = name.rsplit(".", 2)[-2] if ".self_attn." in name else ""
        if not self._port.pairs or projection not in ("q_proj", "k_proj"):
            return part
        rows, heads = part.shape[0], sizes[projection]
        if rows % (2 * heads):
            raise ConfigError(
                f"{self._checkpoint.source}, tensor {part.tensor}: expected pairs of rows for {heads} heads; "
                f"found {rows} rows."
            )
        order = unpermuted_rows(rows, heads)
        return part._replace(rows=order if part.rows is None else part.rows[order])

    def adapted(self, port: Port) -> Port:
        """`port` for this file, which may have tensors for parameters that the port reads from others.

        Files of Phi-3, for instance, have ``attn_q``, ``attn_k`` and ``attn_v``, or one ``attn_qkv``. The prefixes are
        those of Llama, whatever they are in the port's checkpoints.
        """
        present = {re.sub(r"^model\.(layers\.\d+\.)?", "", name) for name in self._parts}

        def is_elsewhere(path: str, located: str | TensorRows | tuple[str | TensorRows, ...]) -> bool:
            return path not in present or any(place.tensor in present for place in places_of(located))

        def names(config: Any) -> Names:
            return {path: place for path, place in port.names(config).items() if is_elsewhere(path, place)}

        return replace(port, names=names, bodies=("model.",), heads=("lm_head.",), layers="layers.")

    def names(self) -> set[str]:
        """The names of all tensors, without those that the config is read from."""
        return set(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._parts[name].shape

    def dtype(self, name: str) -> str:
        """The ggml type of a tensor."""
        return self._checkpoint.dtype(self._parts[name].tensor)

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is a matrix of blocks that stays packed; the other types are decoded when they are read."""
        return len(self._parts[name].shape) == 2 and self.dtype(name) in LAYOUTS

    def abstract_rows(self, name: str, rows: int) -> Any:
        """As many rows of a tensor as `rows` says, in the format that they are read in, without their values."""
        shape = (rows, *self.shape(name)[1:])
        if self.is_packed(name):
            return GGUFBlocks.abstract((shape[0], shape[1]), self.dtype(name))
        return abstract_array(shape, self.read_rows(name, 0, 0).dtype)

    def rows(self, name: str) -> tuple[str, np.ndarray | None]:
        """The tensor of the file that a tensor is read from, and its rows in order; None for all of them.

        Rows are whole, so that this serves packed bytes as well as values.
        """
        return self._parts[name].tensor, self._parts[name].rows

    def read(self, name: str) -> np.ndarray | PackedMatrix:
        """The values of a tensor, or its packed matrix."""
        return self.read_rows(name, 0, self._parts[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | PackedMatrix:
        """Some rows of a tensor."""
        tensor, rows = self.rows(name)
        if self.is_packed(name):
            raw, width = self._checkpoint.read_raw(tensor), self._parts[name].shape[1]
            selection = slice(start, stop) if rows is None else rows[start:stop]
            return GGUFBlocks.from_bytes(raw[selection], self._checkpoint.dtype(tensor), width)
        return self.read_slice(name, (slice(start, stop),))

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor that is not packed, with a slice for each axis."""
        tensor, rows = self.rows(name)
        if rows is None:
            values = self._checkpoint.read_slice(tensor, index)
        else:
            selection = rows[index[0]] if index else rows
            first, last = (int(selection.min()), int(selection.max()) + 1) if len(selection) else (0, 0)
            values = self._checkpoint.read_slice(tensor, (slice(first, last), *index[1:]))[selection - first]
        return self._unshifted(name, values)

    def _unshifted(self, name: str, values: np.ndarray) -> np.ndarray:
        if not self._port.norm_offset or not name.endswith("norm.weight"):
            return values
        return values.astype(np.promote_types(values.dtype, np.float32)) - values.dtype.type(self._port.norm_offset)
