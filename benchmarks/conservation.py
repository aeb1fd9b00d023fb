"""The third part of PARITY.md: circuits are conserved, in every type of model.

On the tiny random checkpoint of the variant, each cell is the largest failure of conservation at a node, relative to
the largest effect (`Circuit.defect`), or that of the tables of an attention score (`AttentionScores.defect`).
"""

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import tiny
from kinds import PROVEN
from tqdm import tqdm

import jaxlin
from jaxlin.attribution.circuits.scores import has_scores
from jaxlin.nn.freeze_rules import RULES

BARS = {"float32": 1e-5, "float64": 1e-12}
HEADING = "## Circuits"
TOKEN, POSITION = 9, 11


def defects(name: str) -> list[tuple[float, float]]:
    """The figures of a variant, each with its bar: of circuits by rule and dtype, then of scores by dtype."""
    circuits, scores = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = tiny.build(tiny.VARIANTS[name], Path(temporary))
        loaded = {dtype: jaxlin.load(folder, dtype=dtype)[0] for dtype in BARS}
    for rule in RULES:
        for dtype, model in loaded.items():
            circuit = jaxlin.circuit(model, model.embed(tiny.IDS), TOKEN, position=POSITION, rule=rule)
            circuits.append((circuit.defect, BARS[dtype]))
    for dtype, model in loaded.items():
        layer = max(layer for layer in range(model.layout.depth) if has_scores(model, layer))
        looked = jaxlin.attention_scores(model, model.embed(tiny.IDS), layer, 1, POSITION, TOKEN)
        scores.append((looked.defect, BARS[dtype]))
    return circuits + scores


def table() -> Iterator[str]:
    """The lines of the table."""
    yield HEADING
    yield ""
    yield "What enters a component of a circuit and what leaves it differ by no more than this, relative to the largest"
    yield "effect; and the tables of an attention score sum to it as tightly. Bars: 1e-5 in float32, 1e-12 in float64."
    yield ""
    columns = [f"{rule} {short}" for rule in RULES for short in ("f32", "f64")] + ["scores f32", "scores f64"]
    yield f"| variant | {' | '.join(columns)} |"
    yield "|" + "---|" * (len(columns) + 1)
    for name in tqdm(PROVEN, unit="variant"):
        yield row(name)


def row(name: str) -> str:
    """The line of a variant."""
    jax.clear_caches()
    cells = [f"{figure:.1e}" if figure <= bar else f"**{figure:.1e}**" for figure, bar in defects(name)]
    return f"| {name} | {' | '.join(cells)} |"


def with_rows(page: str, names: Iterable[str]) -> str:
    """`page` with the lines of some variants in its table measured anew."""
    before, heading, lines = page.partition(HEADING)
    for name in names:
        lines = re.sub(rf"^\| {re.escape(name)} \|.*$", row(name), lines, flags=re.MULTILINE)
    return before + heading + lines
