"""A GGUF checkpoint as if it were a Hugging Face checkpoint: llama.cpp's metadata and tensor names, translated."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxlin.checkpoint.gguf import GGUFFile, hf_name
from jaxlin.common.errors import ConfigError
from jaxlin.loading.gguf_config import ROPE_TENSORS, translated_config
from jaxlin.loading.registry import gguf_port_for
from jaxlin.porting.gguf_keys import unpermuted_rows
from jaxlin.porting.port import Names, Port, places_of
from jaxlin.porting.tensor_rows import TensorRows, part_rows
from jaxlin.quantized import MXFP4, GGUFBlocks, PackedMatrix
from jaxlin.quantized.bfloat16 import abstract_array
from jaxlin.quantized.gguf import LAYOUTS

_BLOCK = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")
"""The beginning of the name of a tensor in a block, whether it is one of Hugging Face's names or of ggml's."""


class _Part(NamedTuple):
    """The tensor of a file that has one of Hugging Face's: its `rows`, in this order, or all of them if None.

    Of a tensor of experts, whose first axis counts them, the rows are those of each. A tensor whose first axis counts
    the `heads` has the rows of all in a matrix, those of each head as its columns if it is `transposed`. With a `place`
    it is that part of a tensor of several.
    """

    tensor: str
    shape: tuple[int, ...]
    rows: np.ndarray | None = None
    heads: int = 0
    transposed: bool = False
    place: int | None = None

    def with_rows(self, rows: np.ndarray) -> "_Part":
        """Some of the rows, in this order."""
        axis = row_axis(self.shape)
        shape = (*self.shape[:axis], len(rows), *self.shape[axis + 1 :])
        return self._replace(shape=shape, rows=rows if self.rows is None else self.rows[rows])


def _in_layer(name: str) -> str:
    """The name of a tensor within its layer; empty if it is in none."""
    return ".".join(name.split(".")[3:])


def row_axis(shape: tuple[int, ...]) -> int:
    """The axis of rows: the first one, unless that counts experts."""
    return max(0, len(shape) - 2)


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
        self.config = translated_config(checkpoint, self._port, names)
        self._rows = self._port.rows(self.config)
        self._parts = self._placed(names)

    def _place(self, places: dict[str, Any], name: str, place: Any, tensor: str) -> None:
        """Put `place` under `name`, once: of two tensors with one name, either may be the wrong one."""
        if name in places:
            raise ConfigError(f"{self._checkpoint.source}, tensor {tensor}: expected one tensor for {name}; found two.")
        places[name] = place

    def _placed(self, names: Mapping[str, str]) -> dict[str, _Part]:
        """The tensor of the file, and its rows, that each of Hugging Face's tensors is read from."""
        parts: dict[str, _Part] = {}
        for name, tensor in names.items():
            part = self._part(name, tensor)
            module, _, kind = name.rpartition(".")
            if tensor.removesuffix(".weight") in ROPE_TENSORS:
                continue
            if module in self._port.stacked:
                for i in range(part.shape[0]):
                    self._place(parts, f"{module}.{i}.{kind}", _Part(tensor, part.shape[1:], place=i), tensor)
                continue
            sizes: Mapping[str, int] = {}
            if module.endswith(".self_attn.qkv_proj") and not self._port.fused:
                sizes = {projection: heads * self.config["head_dim"] for projection, heads in self._heads().items()}
            elif module.endswith(".experts.gate_up_proj"):
                sizes = dict.fromkeys(("gate_proj", "up_proj"), part.shape[row_axis(part.shape)] // 2)
            if not sizes:
                self._place(parts, name, part, tensor)
                continue
            # The metadata may have any number: rows are listed only if the tensor has as many.
            if (rows := part.shape[row_axis(part.shape)]) != (total := sum(sizes.values())):
                raise self._error(tensor, f"{total} rows", f"{rows}")
            for projection, rows in zip(sizes, part_rows(1, *sizes.values()), strict=True):
                self._place(parts, f"{module.rpartition('.')[0]}.{projection}.{kind}", part.with_rows(rows), tensor)
        return {name: self._in_order(name, part) for name, part in parts.items()}

    def _part(self, name: str, tensor: str) -> _Part:
        """The tensor of the file, whose rows may still have to be put in order."""
        shape, transposed = self._checkpoint.shape(tensor), self._port.by_head.get(_in_layer(name))
        if transposed is None:
            return _Part(tensor, shape)
        if len(shape) != 3:
            raise self._error(tensor, "three axes, that of the heads first", f"shape {shape}")
        heads, rows, columns = shape
        rows, columns = (columns, rows) if transposed else (rows, columns)
        return _Part(tensor, (heads * rows, columns), None, heads, transposed)

    def _heads(self) -> dict[str, int]:
        heads = self.config["num_attention_heads"]
        kv_heads = self.config.get("num_key_value_heads", heads)
        return {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}

    def _in_order(self, name: str, part: _Part) -> _Part:
        """The rows of a tensor in Hugging Face's order."""
        in_layer = _in_layer(name)
        count = part.shape[row_axis(part.shape)]
        projection = name.rpartition(".")[0].rpartition(".")[2]
        if self._port.pairs and ".self_attn." in name and projection in ("q_proj", "k_proj"):
            heads = self._heads()[projection]
            if count % (2 * heads):
                raise self._error(part.tensor, f"pairs of rows for {heads} heads", f"{count} rows")
            return part.with_rows(unpermuted_rows(count, heads))
        if in_layer not in self._rows:
            return part
        try:
            return part.with_rows(self._rows[in_layer](count))
        except ValueError as error:
            raise self._error(part.tensor, "rows that can be put in order", f"{count} ({error})") from error

    def _error(self, tensor: str, expected: str, value: str) -> ConfigError:
        return ConfigError(f"{self._checkpoint.source}, tensor {tensor}: expected {expected}; found {value}.")

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

        left_out = {**port.left_out, **dict.fromkeys(self._drafting(), "of blocks that draft further tokens")}
        return replace(port, names=names, bodies=("model.",), heads=("lm_head.",), layers="layers.", left_out=left_out)

    def _drafting(self) -> list[str]:
        """Patterns of the tensors in blocks beyond the last layer of the model."""
        blocks = {f"{match[0]}*": int(match[1]) for name in self._parts if (match := _BLOCK.match(name))}
        return [pattern for pattern, block in blocks.items() if block >= self.config["num_hidden_layers"]]

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
        """Whether a tensor is a matrix of blocks that stays packed, or one for each expert; other types are decoded."""
        part = self._parts[name]
        is_matrix = len(part.shape) in (2, 3) and not name.endswith(".bias")  # biases of experts have two axes
        return is_matrix and not part.transposed and self.dtype(name) in (*LAYOUTS, "MXFP4")

    def abstract_matrix(self, name: str, shape: tuple[int, ...]) -> Any:
        """An array of `shape` in the format that `name`, or each of its experts, is read in, without its values."""
        if self.is_packed(name):
            kind, matrix = self.dtype(name), (shape[0], shape[1])
            return MXFP4.abstract(matrix) if kind == "MXFP4" else GGUFBlocks.abstract(matrix, kind)
        return abstract_array(shape, self.read_slice(name, (slice(0, 0),)).dtype)

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
        if not self.is_packed(name):
            return self.read_slice(name, (slice(start, stop),))
        tensor, rows = self.rows(name)
        selection, place = slice(start, stop) if rows is None else rows[start:stop], self._parts[name].place
        raw = self._checkpoint.read_raw(tensor, *([] if place is None else [slice(place, place + 1)]))
        return self._packed(name, raw.reshape(-1, raw.shape[-1])[selection])

    def read_expert(self, name: str, expert: int) -> PackedMatrix:
        """The packed matrix of one expert of a tensor that has those of all."""
        tensor, rows = self.rows(name)
        (raw,) = self._checkpoint.read_raw(tensor, slice(expert, expert + 1))
        return self._packed(name, raw if rows is None else raw[rows])

    def _packed(self, name: str, raw: np.ndarray) -> PackedMatrix:
        if self.dtype(name) == "MXFP4":
            return MXFP4.from_bytes(raw)
        return GGUFBlocks.from_bytes(raw, self.dtype(name), self._parts[name].shape[-1])

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor that is not packed, with a slice for each axis."""
        tensor, rows = self.rows(name)
        axis, place = row_axis(self._parts[name].shape), self._parts[name].place
        if place is not None:
            (values,) = self._checkpoint.read_slice(tensor, (slice(place, place + 1), *index))
        elif self._parts[name].heads:
            values = self._read_heads(self._parts[name], index)
        elif rows is None:
            values = self._checkpoint.read_slice(tensor, index)
        else:
            index = (*index, *[slice(None)] * (axis + 1 - len(index)))
            selection = rows[index[axis]]
            first, last = (int(selection.min()), int(selection.max()) + 1) if len(selection) else (0, 0)
            values = self._checkpoint.read_slice(tensor, (*index[:axis], slice(first, last), *index[axis + 1 :]))
            values = values.take(selection - first, axis)
        inverse = next((f for pattern, f in self._port.values.items() if fnmatch.fnmatch(name, pattern)), None)
        return values if inverse is None else inverse(values)

    def _read_heads(self, part: _Part, index: tuple[slice, ...]) -> np.ndarray:
        """Some rows of a matrix that has those of all heads; only the heads that they belong to are read."""
        total, width = part.shape
        start, stop, _ = (index or (slice(None),))[0].indices(total)
        rows = total // part.heads
        first = start // rows
        values = self._checkpoint.read_slice(part.tensor, (slice(first, -(-stop // rows)),))
        values = values.swapaxes(1, 2) if part.transposed else values
        return values.reshape(-1, width)[start - first * rows : stop - first * rows][(slice(None), *index[1:])]
