"""Files of interrupted work: a run that continues it must not trust them."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from benchmarks.fuzz.draws import Draw
from benchmarks.fuzz.folders import other_arrays
from benchmarks.fuzz.readers import reader
from jaxlin.common.errors import JaxlinError
from jaxlin.lens.running_mean import RunningMean
from jaxlin.linearize.rows import dense_from_rows
from jaxlin.report.paper.run_folder import RunFolder

MATRIX = np.arange(12, dtype=np.float32).reshape(6, 2) + 1
PROMPTS = [[1, 2], [3, 4]]


def _pull(u: jax.Array) -> jax.Array:
    return jnp.asarray(u) @ MATRIX


def _dense(out: Path, pull: Callable[[jax.Array], jax.Array]) -> Any:
    return dense_from_rows(pull, MATRIX.shape, MATRIX.dtype, block=2, out=out, identity="this", progress=False)


@reader(1)
def rows(draw: Draw, folder: Path) -> Callable[[], Any]:
    """Rows of a map: a file that is accepted, finished or not, has the rows of the map in the end."""
    out, calls = folder / "j.npy", 0

    def stopped(u: jax.Array) -> jax.Array:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return _pull(u)

    with contextlib.suppress(KeyboardInterrupt):
        _dense(out, stopped)
    data, note = folder / "j.npy.partial", folder / "j.npy.partial.json"
    if draw.rarely(0.5):
        data.write_bytes(draw.bytes_like(data.read_bytes()))
    if draw.rarely(0.5):
        entries = json.loads(note.read_text())
        note.write_bytes(draw.text_of(draw.json_like(entries, list(entries))))

    def read() -> None:
        np.testing.assert_array_equal(_dense(out, _pull), MATRIX)

    return read


@reader(1)
def sums(draw: Draw, folder: Path) -> Callable[[], Any]:
    """The sums of a lens fit: a file that is accepted gives the values that were written."""
    out = folder / "l.pt"
    first = RunningMean(out, (2, 3), np.float32, "this")
    with first:
        first.add(PROMPTS[0], jnp.ones((2, 3, 3)))
    path = folder / "l.pt.partial"
    if draw.rarely(0.4):
        path.write_bytes(draw.bytes_like(path.read_bytes()))
    else:
        arrays = safetensors.numpy.load_file(path)
        with safetensors.safe_open(path, "numpy") as opened:
            note: Any = json.loads(opened.metadata()["jaxlin_fit"])
        if draw.rarely(0.5):
            note = draw.json_like(note, list(note))
        else:
            arrays = other_arrays(draw, arrays)
        metadata = {"jaxlin_fit": draw.text_of(note).decode("utf-8", "replace")}
        try:
            safetensors.numpy.save_file(
                {name or "x": np.ascontiguousarray(each) for name, each in arrays.items()}, path, metadata
            )
        except (
            safetensors.SafetensorError,
            KeyError,
            UnicodeEncodeError,
        ):  # what that library has no dtype or name for
            path.write_bytes(b"")

    def read() -> None:
        again = RunningMean(out, (2, 3), np.float32, "this")
        again.resume(PROMPTS)
        assert again.n_prompts == 1
        np.testing.assert_array_equal(again.mean, first.mean)

    return read


@reader(1)
def paper(draw: Draw, folder: Path) -> Callable[[], Any]:
    """The folder of a run: a part or entry that is accepted is as it was written."""
    settings = {"model": "m", "dtype": "float32", "rule": "gate", "seed": 0, "fingerprint": "f"}
    entries = [{"a": 1}, {"a": 2}]
    document = {"settings": settings, "tokens": ["a"], "data": {"x": [1.0]}}
    with tempfile.TemporaryDirectory(dir=folder) as before:
        run = RunFolder.create(Path(before) / "run", settings)
        run.write_document("figure_1b", document)
        run.write_progress("figure_3", entries)
        files = {path.name: path.read_bytes() for path in run.path.iterdir()}
    name = draw.choice(sorted(files))
    if draw.rarely(0.5):
        files[name] = draw.bytes_like(files[name])
    else:
        files[name] = draw.text_of(draw.json_like(json.loads(files[name]), ["settings", "data", "checksum"]))
    path = folder / "run"
    path.mkdir()
    for each, content in files.items():
        (path / each).write_bytes(content)

    def read() -> None:
        run = RunFolder.create(path, settings)
        assert run.read_progress("figure_3") in ([], entries)
        assert run.read_document("figure_1b") in (None, document)
        try:
            RunFolder.open(path).read_document("figure_1b")
        except JaxlinError as error:
            str(error)

    return read
