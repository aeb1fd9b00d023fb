"""Safetensors whose weights are quantised: the tensors of each method gathered into packed matrices.

What the key ``quantization_config`` of config.json names is read here; nothing is decoded.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.folder import Folder
from jaxlin.checkpoint.strict_json import parse_object
from jaxlin.errors import CheckpointError
from jaxlin.packed import FourBit, Int8, Nested, Packed, Scaled

FLOAT8 = ("F8_E4M3", "F8_E5M2")
REFUSED = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "aqlm": "AQLM",
    "eetq": "EETQ",
}
"""Methods that are known and not read."""


class Quantized:
    """The tensors of a folder, those that are quantised as packed matrices. A subclass is one method.

    Args:
        folder: the checkpoint.
        said: its ``quantization_config``.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """What the names of the tensors that belong to a weight end with, after the name of its module."""

    left_out: ClassVar[tuple[str, ...]] = ()
    """Tensors that quantise activations, which the map of the dequantised weights does not."""

    def __init__(self, folder: Folder, said: ConfigReader) -> None:
        self.folder = folder
        self.read_config(said)
        self._modules = {name.removesuffix(".weight") for name in folder.names() if self.is_packed(name)}

    def read_config(self, said: ConfigReader) -> None:
        """Take what matters of the quantisation config."""
        raise NotImplementedError

    def is_packed(self, name: str) -> bool:
        """Whether the tensor `name` is a quantised weight."""
        raise NotImplementedError

    def packed(self, module: str) -> Packed:
        """The weight of `module`."""
        raise NotImplementedError

    def packed_shape(self, module: str) -> tuple[int, ...]:
        """The shape of the weight of `module`."""
        return self.folder.shape(f"{module}.weight")

    def names(self) -> Iterable[str]:
        """The tensors there are, without those that belong to a packed one."""
        belong = {f"{module}.{suffix}" for module in self._modules for suffix in (*self.suffixes, *self.left_out)}
        return self.folder.names() - belong

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one, as it is once unpacked."""
        module = name.removesuffix(".weight")
        return self.packed_shape(module) if module in self._modules else self.folder.shape(name)

    def dtype(self, name: str) -> str:
        """The format's name of a tensor's dtype; "packed" of a packed one."""
        return "packed" if name.removesuffix(".weight") in self._modules else self.folder.dtype(name)

    def read(self, name: str) -> np.ndarray | Packed:
        """The values of one, or the packed matrix."""
        module = name.removesuffix(".weight")
        return self.packed(module) if module in self._modules else self.folder.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | Packed:
        """Some rows of one."""
        module = name.removesuffix(".weight")
        if module in self._modules:
            return self.packed(module).rows(slice(start, stop))
        return self.folder.read_rows(name, start, stop)

    def part(self, module: str, suffix: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> np.ndarray:
        """A tensor that belongs to the weight of `module`, of one of `dtypes` and of `shapes`.

        Raises:
            CheckpointError: it is missing, or is another.
        """
        name = f"{module}.{suffix}"
        expected = f"a tensor {name} of {' or '.join(dtypes)} and shape {' or '.join(map(str, shapes))}"
        if name not in self.folder.names():
            raise CheckpointError(
                f"{self.folder.file_of(f'{module}.weight')}: expected {expected}, which {module}.weight needs; "
                "found none."
            )
        dtype, shape = self.folder.dtype(name), self.folder.shape(name)
        if dtype not in dtypes or shape not in shapes:
            raise CheckpointError(f"{self.folder.file_of(name)}: expected {expected}; found {dtype} of shape {shape}.")
        return self.folder.read(name)


class BitsAndBytes(Quantized):
    """bitsandbytes: NF4 and FP4 in blocks along a row, with or without double quantisation; int8 by rows."""

    STATE = "quant_state.bitsandbytes__"
    suffixes = (
        *("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"weight.{STATE}nf4", f"weight.{STATE}fp4"),
        *("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
        *("SCB", "weight_format"),
    )

    def read_config(self, said: ConfigReader) -> None:
        """All of it chooses how to quantise or to compute; each tensor says what it is."""
        self._four = said.take("load_in_4bit", bool, said.take("_load_in_4bit", bool, False))
        self._eight = said.take("load_in_8bit", bool, said.take("_load_in_8bit", bool, False))
        said.leave_out("_load_in_4bit", "_load_in_8bit", "llm_int8_enable_fp32_cpu_offload", "llm_int8_skip_modules")
        said.leave_out("llm_int8_has_fp16_weight", "llm_int8_threshold", "bnb_4bit_compute_dtype")
        said.leave_out(
            "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage", "modules_to_not_convert"
        )
        if self._four == self._eight:
            raise said.error("load_in_4bit", "either load_in_4bit or load_in_8bit", f"both {self._four}")

    def is_packed(self, name: str) -> bool:
        """Bytes are: of an unquantised weight the values are floats."""
        return name.endswith(".weight") and self.folder.dtype(name) == ("U8" if self._four else "I8")

    def packed_shape(self, module: str) -> tuple[int, ...]:
        """Of 4 bits, as the quant state says it."""
        return tuple(self._state(module)["shape"]) if self._four else self.folder.shape(f"{module}.weight")

    def packed(self, module: str) -> Packed:
        """`FourBit` or `Int8`."""
        if self._eight:
            out, _ = self.folder.shape(f"{module}.weight")
            stored = np.asarray(self.part(module, "weight_format", ("U8",), (), (1,)))
            if stored.any():
                raise CheckpointError(
                    f"{self.folder.source}, {module}.weight_format: expected 0, rows; found {stored}."
                )
            return Int8(self.folder.read(f"{module}.weight"), self.part(module, "SCB", ("F32",), (out,)))
        state = self._state(module)
        (out, width), size = state["shape"], state["blocksize"]
        blocks = out * (width // size)
        codes = self.part(module, "weight", ("U8",), (out * width // 2, 1), (out * width // 2,)).reshape(out, -1)
        table = self.part(module, "weight.quant_map", ("F32",), (16,))
        nested = None
        if "nested_blocksize" in state:
            absmax = self.part(module, "weight.absmax", ("U8",), (blocks,))
            scales = -(-blocks // state["nested_blocksize"])
            nested = Nested(
                self.part(module, "weight.nested_absmax", ("F32",), (scales,)),
                self.part(module, "weight.nested_quant_map", ("F32",), (256,)),
                np.float32(state["nested_offset"]),
                np.arange(out, dtype=np.int32),
            )
        else:
            absmax = self.part(module, "weight.absmax", ("F32",), (blocks,))
        return FourBit(codes, absmax.reshape(out, -1), table, nested, state["dtype"])

    def _state(self, module: str) -> dict[str, Any]:
        """The quant state of a weight, checked."""
        kinds = [kind for kind in ("nf4", "fp4") if f"{module}.weight.{self.STATE}{kind}" in self.folder.names()]
        name = f"{module}.weight.{self.STATE}{kinds[0] if kinds else 'nf4'}"
        if len(kinds) != 1:
            raise CheckpointError(
                f"{self.folder.file_of(f'{module}.weight')}: expected one tensor {name} (or fp4), which says how "
                f"{module}.weight is packed; found {len(kinds) or 'none'}."
            )
        try:
            state = parse_object(self.folder.read(name).tobytes())
        except ValueError as error:
            raise self._unreadable(name, "a JSON object", str(error)) from error
        checks: dict[str, Callable[[Any], bool]] = {
            "quant_type": lambda value: value == kinds[0],
            "blocksize": lambda value: type(value) is int and value > 0,
            "dtype": lambda value: value in ("float32", "float16", "bfloat16"),
            "shape": lambda value: (
                isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
            ),
        }
        if "nested_blocksize" in state:
            checks |= {
                "nested_blocksize": lambda value: value == 256,
                "nested_offset": lambda value: type(value) is float and bool(np.isfinite(value)),
                "nested_dtype": lambda value: value == "float32",
            }
        for key, good in checks.items():
            if not good(state.get(key)):
                raise self._unreadable(name, f"a {key} that jaxlin understands", repr(state.get(key))[:80])
        if unknown := sorted(set(state) - set(checks)):
            raise self._unreadable(name, f"the keys {', '.join(checks)}", ", ".join(unknown)[:80])
        if state["shape"][1] % state["blocksize"]:
            raise self._unreadable(name, f"rows of whole blocks of {state['blocksize']} values", f"{state['shape']}")
        return state

    def _unreadable(self, name: str, expected: str, found: str) -> CheckpointError:
        return CheckpointError(f"{self.folder.file_of(name)}, tensor {name}: expected {expected}; found {found}.")


class FineGrained(Quantized):
    """``fp8``: 8-bit floats with one scale for each block of ``weight_block_size``, or one for the matrix."""

    suffixes = ("weight_scale_inv",)
    left_out = ("activation_scale", "input_scale")

    def read_config(self, said: ConfigReader) -> None:
        """The size of a block; how activations are quantised at run time is no matter of the weights."""
        block = said.take("weight_block_size", list, None)
        if block is not None and not (len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
            raise said.error("weight_block_size", "two integers of at least 1", repr(block))
        self._block = block
        said.leave_out("activation_scheme", "modules_to_not_convert", "dequantize", "fmt", "scale_fmt")

    def is_packed(self, name: str) -> bool:
        """Weights of 8-bit floats are."""
        return name.endswith(".weight") and self.folder.dtype(name) in FLOAT8

    def packed(self, module: str) -> Packed:
        """`Scaled`, in float32."""
        codes = self.folder.read(f"{module}.weight")
        out, width = codes.shape
        high, wide = self._block or (out, width)
        grid = (-(-out // high), -(-width // wide))
        shapes = (grid,) if self._block else (grid, (1,), ())
        scale = self.part(module, "weight_scale_inv", ("F32", "BF16", "F16", "F8_E8M0"), *shapes)
        return Scaled.of(codes, scale.astype(np.float32).reshape(grid), (high, wide))


class CompressedTensors(Quantized):
    """``compressed-tensors`` with 8-bit floats or integers, symmetric: scales for the matrix, rows or blocks."""

    suffixes = ("weight_scale",)
    left_out = ("input_scale", "output_scale")

    def read_config(self, said: ConfigReader) -> None:
        """The format of the weights in every group."""
        for key in (
            "format",
            "quantization_status",
            "ignore",
            "global_compression_ratio",
            "kv_cache_scheme",
            "version",
        ):
            said.leave_out(key)
        said.leave_out("sparsity_config", "transform_config")
        groups = said.take("config_groups", dict)
        self._block: tuple[int, int] | None = None
        for name, group in groups.items():
            weights = group.get("weights") if isinstance(group, dict) else None
            if not isinstance(weights, dict):
                raise said.error("config_groups", f"an object 'weights' in {name}", repr(group)[:80])
            kind = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric", True))
            if kind not in ((8, "float", True), (8, "int", True)):
                raise said.error("config_groups", "symmetric weights of 8 bits, float or int", f"{weights}"[:160])
            if weights.get("strategy") not in ("tensor", "channel", "block"):
                raise said.error("config_groups", "a strategy tensor, channel or block", repr(weights.get("strategy")))
            block = weights.get("block_structure")
            self._block = tuple(block) if weights["strategy"] == "block" and block else self._block
        transformed = said.peek("transform_config")
        if transformed:
            raise said.error("transform_config", "none", repr(transformed)[:80])

    def is_packed(self, name: str) -> bool:
        """Weights of 8 bits are."""
        return name.endswith(".weight") and self.folder.dtype(name) in (*FLOAT8, "I8")

    def packed(self, module: str) -> Packed:
        """`Scaled`, in the dtype of its scales."""
        codes = self.folder.read(f"{module}.weight")
        out, width = codes.shape
        blocks = {(out, 1): (1, width), (out,): (1, width), (1, 1): (out, width), (1,): (out, width), (): (out, width)}
        if self._block:
            high, wide = self._block
            blocks = {(-(-out // high), -(-width // wide)): self._block}
        scale = self.part(module, "weight_scale", ("F32", "BF16", "F16"), *blocks)
        block = blocks[scale.shape]
        return Scaled.of(codes, scale.reshape(-(-out // block[0]), -(-width // block[1])), block)


METHODS: dict[str, type[Quantized]] = {
    "bitsandbytes": BitsAndBytes,
    "fp8": FineGrained,
    "compressed-tensors": CompressedTensors,
}
"""``quant_method`` of ``quantization_config``, and what reads it."""


def quantized(folder: Folder, config: ConfigReader) -> "Folder | Quantized":
    """`folder` itself, or its view with packed matrices where config.json says that weights are quantised.

    Raises:
        ConfigError: a method that is not read.
    """
    if config.take("quantization_config", dict, None) is None:
        return folder
    said = config.part("quantization_config")
    method = said.take("quant_method", str)
    if method not in METHODS:
        found = f"{method!r}" + (f": {REFUSED[method]} weights are not read" if method in REFUSED else "")
        raise said.error("quant_method", f"one of {', '.join(METHODS)}", f"{found}. Take another file of this model")
    return METHODS[method](folder, said)
