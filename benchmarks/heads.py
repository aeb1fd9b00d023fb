"""The second part of PARITY.md: which matrix gives the logits, and under which names, in every port and wrapper.

The residual of a map says nothing of either, as it is taken before the unembedding. Each cell is the largest difference
of a logit from transformers', in float32, over twenty positions of one tiny random checkpoint that is edited.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import tiny
import unembedding_files
from tqdm import tqdm
from unembedding_files import CASES, PORTS, WRAPPERS, Stream

from jaxlin.common.errors import JaxlinError

BAR = 2e-5
STORED = {"both": "another head", "equal": "an equal head", "embeddings": "no head", "head": "the head alone"}
CLAIMS = {True: "tied", False: "untied", None: "no key"}


def cell(folder: Path, stream: Stream) -> str:
    """The largest difference of a logit for the checkpoint in `folder`, or "refused" where jaxlin refuses it."""
    try:
        _, worst = unembedding_files.difference(folder, stream)
    except JaxlinError:
        return "refused"
    return f"{worst:.1e}" if worst <= BAR else f"**{worst:.1e}**"


def tables() -> Iterator[str]:
    """The lines of both tables."""
    yield "## Heads"
    yield ""
    yield "What config.json claims, and what is stored beside the embeddings, or without them. A matrix that is neither"
    yield "stored nor tied is random in transformers; jaxlin refuses the file, naming what is missing."
    yield ""
    yield "| model | " + " | ".join(f"{CLAIMS[claim]}, {STORED[stored]}" for claim, stored in CASES) + " |"
    yield "|" + "---|" * (len(CASES) + 1)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary)
        sources = {name: tiny.build(tiny.VARIANTS[name], path / name) for name in PORTS}
        for name in tqdm(PORTS, unit="port"):
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
        for name, kinds in WRAPPERS.items():
            stream = Stream()
            for places in kinds:
                cell_text = cell(unembedding_files.placed(sources[name], path / f"{name}, {places}", *places), stream)
                yield f"| {name} | `{places[0]}*` | `{places[1]}*` | {cell_text} |"
