"""Fine-grained FP8: 8-bit floats with a scale for each block of a weight.

The tensors of a module are ``weight``, ``[out, in]``, and ``weight_scale_inv``, a scale for each block of
``weight_block_size`` or one for the matrix. Experts may be in one tensor: ``experts.gate_up_proj``, ``[E, out, in]``,
with ``experts.gate_up_proj_scale_inv``, ``[E, ...]``, which without blocks has a scale for gate and one for up; and
likewise ``down_proj``. Source: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, §3.3.

The values are the codes times their scales, in float32.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.safetensors import DTYPES
from jaxlin.common.printable import quoted
from jaxlin.quantized.format import ModuleTensors, QuantizedFormat, is_pair_of_sizes
from jaxlin.quantized.scaled import FLOAT8, Scaled, clipped_block

SCALES = ("F32", "BF16", "F16", "F8_E8M0")
"""The dtypes of scales."""

FUSED = (".experts.gate_up_proj", ".experts.down_proj")
"""The ends of the names of the weights of all experts of a layer."""


class FineGrainedFP8(QuantizedFormat):
    """``fp8``."""

    companions = ("weight_scale_inv", "scale_inv")
    unused = ("activation_scale", "input_scale")

    def __init__(self, config: ConfigReader) -> None:
        block = config.take("weight_block_size", list, None)
        if block is not None and not is_pair_of_sizes(block):
            raise config.error("weight_block_size", "two integers of at least 1", quoted(block))
        self._block = None if block is None else (block[0], block[1])
        self.take_skipped(config, "modules_to_not_convert")
        config.leave_out("activation_scheme", "dequantize", "fmt", "scale_fmt")

    def modules(self, folder: CheckpointFolder) -> Iterator[ModuleTensors]:
        """Those with a tensor ``weight``, and those of all experts of a layer."""
        yield from super().modules(folder)
        for name in folder.names():
            if name.endswith(FUSED):
                yield ModuleTensors(folder, name, "", "_")

    def weight_name(self, module: ModuleTensors) -> str:
        """The name of the tensor that has the codes."""
        return module.tensor(module.stem)

    def is_packed(self, module: ModuleTensors) -> bool:
        """Whether the weight has 8-bit floats."""
        return module.dtype(module.stem) in FLOAT8

    def abstract_matrix(self, shape: tuple[int, int], dtype: str, module: ModuleTensors | None = None) -> Scaled:
        """`Scaled`, in float32."""
        kind = "float8_e4m3fn" if module is None else DTYPES[module.dtype(module.stem)].name
        return Scaled.abstract(shape, clipped_block(self._block or shape, shape), np.float32, kind)

    def abstract_rows(
        self,
        tensor: str,
        shape: tuple[int, int],
        index: Int[np.ndarray, " n"],
        dtype: str,
        module: ModuleTensors | None = None,
    ) -> Scaled:
        """Rows that cut blocks have scales of their own; gate and up of all experts, without blocks, have one each."""
        if self._block is None and tensor.endswith(FUSED[0]):
            return self.abstract_matrix((len(index), shape[1]), dtype, module)
        return self.abstract_matrix(shape, dtype, module).abstract_rows(index)

    def read(self, module: ModuleTensors) -> Scaled:
        """`Scaled`, in float32."""
        out, width = module.matrix_shape()
        high, wide = clipped_block(self._block or (out, width), (out, width))
        grid = (-(-out // high), -(-width // wide))
        shapes = (grid,) if self._block else (grid, (1,), ())
        scale = module.companion("weight_scale_inv", SCALES, *shapes)
        return Scaled.from_codes(module.read("weight"), scale.astype(np.float32).reshape(grid), (high, wide))

    def read_expert(self, module: ModuleTensors, expert: int) -> Scaled:
        """`Scaled`, in float32."""
        experts, out, width = self.shape(module)
        halves = 2 if module.name.endswith(".gate_up_proj") else 1
        high, wide = clipped_block(self._block or (out // halves, width), (out, width))
        grid = (-(-out // high), -(-width // wide))
        shapes = ((experts, *grid), *(((experts,),) if grid == (1, 1) else ()))
        scale = module.companion("scale_inv", SCALES, *shapes, expert=expert)
        return Scaled.from_codes(module.read("", expert), scale.astype(np.float32).reshape(grid), (high, wide))
