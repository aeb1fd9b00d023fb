"""Files of results: safetensors, with the values as JSON in their metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.draws import TEXTS, Draw, json_text
from benchmarks.fuzz.folders import file_bytes, other_arrays, other_header, packed_bytes
from benchmarks.fuzz.readers import reader
from jaxlin import results

NEURONS = {"result": "Neurons", "fields": {name: {"array": name} for name in ("layer", "index", "contribution")}}
RANKS = {
    "result": "Ranks",
    "fields": {"stable": {"float": "nan"}, "effective": 1.5, "participation": {"float": "-inf"}, "energy90": 1,
               "energy99": 2, "prediction": None},
}  # fmt: skip
PROVENANCE = {"model": "a", "ids": [1], "texts": {"1": "a"}, "settings": {"target": 1}, "versions": {"jax": "1"}}


@reader(2)
def result_file(draw: Draw, folder: Path) -> Callable[[], Any]:
    """A result, with changes in its values, its provenance or its arrays."""
    value, names = draw.choice([(NEURONS, ("layer", "index", "contribution")), (RANKS, ())])
    content: Any = {"value": value, "provenance": PROVENANCE}
    arrays, change = {name: np.ones(2, np.float32) for name in names}, draw.randrange(4)
    if change == 0:
        content = draw.json_like(content, ["value", "result", "fields", "array", "list", "tuple", "mapping", "float"])
    text = draw.choice(TEXTS) if draw.rarely(0.05) else json_text(content)
    header, data = packed_bytes(
        other_arrays(draw, arrays) if change == 1 and arrays else arrays, {"jaxlin_result": text}
    )
    path = folder / "result.safetensors"
    path.write_bytes(file_bytes(draw, other_header(draw, header) if change == 2 else header, data))
    return lambda: repr(results.load(path))
