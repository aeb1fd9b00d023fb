"""The tools that the family files in ``models/`` are written with.

A family file defines a decoder and two tables. ``PORTS`` has a `Port` for each `model_type`: the decoder's class, the
function that makes its config from a config.json, and the names of tensors that differ from those of the parameters.
``GGUF`` has a `GGUFPort` for each architecture of GGUF files. A translation reads the fields that families share with
`jaxlin.porting.fields`, its own keys with the methods of `ConfigReader`, and rotary frequencies with `rope_of` or
`ropes_by_type`. `jaxlin.loading.registry` then names the file; nothing else does.
"""

from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port
from jaxlin.porting.tensor_rows import (
    TensorRows,
    either,
    fused_experts,
    paired_rows,
    part_rows,
    single_experts,
    stacked_rows,
)

__all__ = [
    "GGUFPort",
    "Port",
    "TensorRows",
    "either",
    "fused_experts",
    "paired_rows",
    "part_rows",
    "single_experts",
    "stacked_rows",
]
