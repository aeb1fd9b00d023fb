"""Weights in the bytes of their files, unpacked one layer at a time where they are used."""

from jaxlin.packed.affine import Affine as Affine
from jaxlin.packed.base import Packed as Packed
from jaxlin.packed.bitsandbytes import FourBit as FourBit
from jaxlin.packed.bitsandbytes import Int8 as Int8
from jaxlin.packed.bitsandbytes import Nested as Nested
from jaxlin.packed.gguf import Blocks as Blocks
from jaxlin.packed.mixed import Mixed as Mixed
from jaxlin.packed.scaled import BFloat16 as BFloat16
from jaxlin.packed.scaled import Scaled as Scaled
