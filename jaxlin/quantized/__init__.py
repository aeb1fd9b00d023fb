"""Weights in the bytes of their files, unpacked one layer at a time where they are used.

A `PackedMatrix` stands where an array would. Each format of files is one module: how files store its tensors,
its packed matrix, and the shape of that matrix for the memory plan. `open_quantized` reads a folder through the format
that its config.json names; `jaxlin.quantized.mixed` stacks layers that are not all in one format.
"""

from jaxlin.quantized.affine import Affine
from jaxlin.quantized.bfloat16 import BFloat16
from jaxlin.quantized.bitsandbytes import FourBit, Int8, NestedScales
from jaxlin.quantized.gguf import GGUFBlocks
from jaxlin.quantized.matrix import PackedMatrix
from jaxlin.quantized.methods import open_quantized, quantized_format
from jaxlin.quantized.mixed import MixedStack
from jaxlin.quantized.mxfp4 import MXFP4
from jaxlin.quantized.scaled import Scaled

__all__ = [
    "MXFP4",
    "Affine",
    "BFloat16",
    "FourBit",
    "GGUFBlocks",
    "Int8",
    "MixedStack",
    "NestedScales",
    "PackedMatrix",
    "Scaled",
    "open_quantized",
    "quantized_format",
]
