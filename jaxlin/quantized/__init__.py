"""Weights in the bytes of their files, unpacked one layer at a time where they are used."""

from jaxlin.quantized.affine import Affine as Affine
from jaxlin.quantized.base import PackedMatrix as PackedMatrix
from jaxlin.quantized.bitsandbytes import FourBit as FourBit
from jaxlin.quantized.bitsandbytes import Int8 as Int8
from jaxlin.quantized.bitsandbytes import NestedScales as NestedScales
from jaxlin.quantized.gguf import GGUFBlocks as GGUFBlocks
from jaxlin.quantized.mixed import MixedStack as MixedStack
from jaxlin.quantized.scaled import BFloat16 as BFloat16
from jaxlin.quantized.scaled import Scaled as Scaled
