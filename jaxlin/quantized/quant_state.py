"""The quant state of a weight of 4 bits: a tensor of JSON, in which bitsandbytes says how it packed the weight."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlin.common.printable import quoted
from jaxlin.common.strict_json import parse_object
from jaxlin.quantized.format import ModuleTensors, is_pair_of_sizes

NESTED_BLOCK = 256
"""How many scales share one scale of their own, under double quantisation."""

STATE = "weight.quant_state.bitsandbytes__"
"""What the name of a quant state begins with, before ``nf4`` or ``fp4``."""


def quant_state(module: ModuleTensors) -> dict[str, Any]:
    """The quant state of a weight, checked.

    Raises:
        CheckpointError: it is missing, or says what cannot be read.
    """
    kinds = [kind for kind in ("nf4", "fp4") if f"{STATE}{kind}" in module]
    name = f"{STATE}{kinds[0] if kinds else 'nf4'}"
    if len(kinds) != 1:
        expected = f"one tensor {module.name}.{name} (or fp4), which says how it is packed"
        raise module.error("weight", expected, f"{len(kinds) or 'none'}")
    try:
        state = parse_object(module.read(name).tobytes())
    except ValueError as error:
        raise module.error(name, "a JSON object", str(error)) from error
    checks: dict[str, Callable[[Any], bool]] = {
        "quant_type": lambda value: value == kinds[0],
        "blocksize": lambda value: type(value) is int and value > 0,
        "dtype": lambda value: value in ("float32", "float16", "bfloat16"),
        "shape": is_pair_of_sizes,
    }
    if "nested_blocksize" in state:
        checks |= {
            "nested_blocksize": lambda value: type(value) is int and value == NESTED_BLOCK,
            "nested_offset": lambda value: type(value) is float and bool(np.isfinite(value)),
            "nested_dtype": lambda value: value == "float32",
        }
    for key, is_valid in checks.items():
        if not is_valid(state.get(key)):
            raise module.error(name, f"a {key} that jaxlin understands", quoted(state.get(key)))
    if unknown := sorted(set(state) - set(checks)):
        raise module.error(name, f"the keys {', '.join(checks)}", ", ".join(unknown)[:80])
    if state["shape"][1] % 2:
        raise module.error(name, "rows of an even number of values, two to a byte", f"{state['shape']}")
    if state["shape"][1] % state["blocksize"]:
        raise module.error(name, f"rows of whole blocks of {state['blocksize']} values", f"{state['shape']}")
    return state
