"""The tensors of bitsandbytes: codes, their scales, and a quant state that says what they are."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.common.printable import quoted
from jaxlin.common.strict_json import parse_object
from jaxlin.quantized import FourBit, Int8, NestedScales
from jaxlin.quantized.packing import Quantized


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
        self._nested = said.take("bnb_4bit_use_double_quant", bool, False)
        for key in ("llm_int8_skip_modules", "modules_to_not_convert"):
            self.take_skipped(said, key)
        said.leave_out("_load_in_4bit", "_load_in_8bit", "llm_int8_enable_fp32_cpu_offload")
        said.leave_out("llm_int8_has_fp16_weight", "llm_int8_threshold", "bnb_4bit_compute_dtype")
        said.leave_out("bnb_4bit_quant_type", "bnb_4bit_quant_storage")
        if self._four == self._eight:
            raise said.error("load_in_4bit", "either load_in_4bit or load_in_8bit", f"both {self._four}")

    def is_packed_tensor(self, name: str) -> bool:
        """Bytes are: of an unquantised weight the values are floats."""
        return self.folder.dtype(name) == ("U8" if self._four else "I8")

    def packed_shape(self, module: str) -> tuple[int, ...]:
        """Of 4 bits, as the quant state says it."""
        return tuple(self._state(module)["shape"]) if self._four else self.folder.shape(f"{module}.weight")

    def packed(self, module: str) -> FourBit | Int8:
        """`FourBit` or `Int8`."""
        if self._eight:
            out, _ = self.matrix_shape(module)
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
            nested = NestedScales(
                self.part(module, "weight.nested_absmax", ("F32",), (scales,)),
                self.part(module, "weight.nested_quant_map", ("F32",), (256,)),
                np.float32(state["nested_offset"]),
                np.arange(out, dtype=np.int32),
            )
        else:
            absmax = self.part(module, "weight.absmax", ("F32",), (blocks,))
        return FourBit.of(codes, absmax.reshape(out, -1), table, nested, state["dtype"])

    def planned(self, shape: tuple[int, int], dtype: str) -> FourBit | Int8:
        """`FourBit` in blocks of 64, bitsandbytes' default, or `Int8`."""
        if self._eight:
            return Int8.form(shape)
        return FourBit.form(shape, 64, nested=self._nested, kind=dtype)

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
                "nested_blocksize": lambda value: type(value) is int and value == 256,
                "nested_offset": lambda value: type(value) is float and bool(np.isfinite(value)),
                "nested_dtype": lambda value: value == "float32",
            }
        for key, good in checks.items():
            if not good(state.get(key)):
                raise self._unreadable(name, f"a {key} that jaxlin understands", quoted(state.get(key)))
        if unknown := sorted(set(state) - set(checks)):
            raise self._unreadable(name, f"the keys {', '.join(checks)}", ", ".join(unknown)[:80])
        if state["shape"][1] % 2:
            raise self._unreadable(name, "rows of an even number of values, two to a byte", f"{state['shape']}")
        if state["shape"][1] % state["blocksize"]:
            raise self._unreadable(name, f"rows of whole blocks of {state['blocksize']} values", f"{state['shape']}")
        return state

    def _unreadable(self, name: str, expected: str, found: str) -> CheckpointError:
        return CheckpointError(f"{self.folder.file_of(name)}, tensor {name}: expected {expected}; found {found}.")
