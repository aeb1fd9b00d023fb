"""The second part of PARITY.md: which matrix gives the logits, and under which names, in every port and wrapper.

The residual of a map says nothing of either, as it is taken before the unembedding. Each cell is the largest difference
of a logit from transformers' over twenty positions of one tiny random checkpoint that is edited: in float32, and of the
types of `DOUBLE` in float64.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import tiny
import unembedding_files
from tqdm import tqdm
from unembedding_files import CASES, DOUBLE, PORTS, WRAPPERS, Stream

from jaxlin.common.errors import JaxlinError

BARS = {"float32": 2e-5, "float64": 1e-10}
STORED = {"both": "another head", "equal": "an equal head", "embeddings": "no head", "head": "the head alone"}
CLAIMS = {True: "tied", False: "untied", None: "no key"}


def cell(folder: Path, stream: Stream) -> str:
    """The largest difference of a logit for the checkpoint in `folder`, or "refused" where jaxlin refuses it."""
    try:
        _, worst = unembedding_files.difference(folder, stream)
    except JaxlinError:
        return "refused"
    return f"{worst:.1e}" if worst <= BARS[str(jnp.result_type(float))] else f"**{worst:.1e}**"


def tables() -> Iterator[str]:
    """The lines of both tables."""
    before = jnp.result_type(float) == jnp.float64
    try:
        yield from _tables()
    finally:
        jax.config.update("jax_enable_x64", before)


def _tables() -> Iterator[str]:
    yield "## Heads"
    yield ""
    yield "What config.json claims, and what is stored beside the embeddings, or without them. A matrix that is neither"
    yield "stored nor tied is random in transformers; jaxlin refuses the file, naming what is missing. In float32;"
    yield "types with a delta rule in float64."
    yield ""
    yield "| model | " + " | ".join(f"{CLAIMS[claim]}, {STORED[stored]}" for claim, stored in CASES) + " |"
    yield "|" + "---|" * (len(CASES) + 1)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary)
        sources = {name: tiny.build(tiny.VARIANTS[name], path / name) for name in (*PORTS, *DOUBLE)}
        for name in tqdm((*PORTS, *DOUBLE), unit="port"):
            jax.config.update("jax_enable_x64", name in DOUBLE)
            stream, cells = Stream(), []
            for claim, stored in CASES:
                folder = unembedding_files.claiming(sources[name], path / f"{name}, {claim}, {stored}", claim, stored)
                cells.append(cell(folder, stream))
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""
        yield "## Names of wrappers"
        yield ""
        yield "Where versions of transformers have kept the text half and its head, here unlike the embeddings."
        yield ""
        yield "| model | text half | head | logits f32 |"
        yield "|---|---|---|---|"
        jax.config.update("jax_enable_x64", False)
        for name, kinds in WRAPPERS.items():
            stream = Stream()
            for places in kinds:
                cell_text = cell(unembedding_files.placed(sources[name], path / f"{name}, {places}", *places), stream)
                yield f"| {name} | `{places[0]}*` | `{places[1]}*` | {cell_text} |"
