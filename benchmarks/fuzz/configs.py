"""config.json, read by the port that it names and by the memory plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz.draws import Draw
from benchmarks.fuzz.readers import reader
from benchmarks.fuzz.samples import CONFIGS, KEYS
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.files import read_json
from jaxlin.loading.registry import port_for
from jaxlin.loading.shapes import shapes_of


def written(draw: Draw, folder: Path) -> Path:
    """A changed config.json."""
    path = folder / "config.json"
    config = draw.json_like(CONFIGS[draw.choice(list(CONFIGS))], KEYS)
    path.write_bytes(draw.text_of(config))
    return path


@reader(4)
def config(draw: Draw, folder: Path) -> Callable[[], Any]:
    """Read config.json as `load` does before it looks at a tensor."""
    path = written(draw, folder)

    def read() -> None:
        fields = ConfigReader(read_json(path), str(path))
        translated = port_for(fields.peek("model_type")).translate(fields)
        fields.finish()
        repr(translated)

    return read


@reader(1)
def plan(draw: Draw, folder: Path) -> Callable[[], Any]:
    """Compute the shapes of a model from a config alone, as the memory plan does."""
    path = written(draw, folder)
    return lambda: shapes_of(read_json(path), None, "float32", "gate")
