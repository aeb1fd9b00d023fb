"""Draw the figures of docs/map.md from what the small model computes for one prompt.

python docs/scripts/figures.py [FOLDER]
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from drawing import FIRST, INK, SECOND, Drawing, placed

import jaxlin

TEXT = "The bridge out of the town is the"
FOLDER = Path(__file__).parents[1] / "figures"


class Subject(NamedTuple):
    """What is drawn: a model, its map at the prompt, and the prompt's tokens."""

    model: Any
    tokenizer: Any
    lmap: jaxlin.LocalMap
    tokens: list[str]


def subject() -> Subject:
    """The small model at `TEXT`."""
    model, tokenizer = jaxlin.load()
    ids = tokenizer.encode(TEXT)
    tokens = [token.replace(" ", "·") for token in tokenizer.to_str_tokens(ids)]
    return Subject(model, tokenizer, jaxlin.local_map(model, model.embed(ids)), tokens)


def gate(_: Subject) -> Drawing:
    """The idea on one number: SiLU, the line that freezing it leaves, and its tangent."""
    drawing, at, low, high = Drawing(420, 300, "SiLU at one input"), -1.3, -4.0, 3.0
    z = np.linspace(low, high, 97)
    across = placed(z.tolist(), low, high, 40, 340)

    def up(values: np.ndarray) -> list[float]:
        return placed(values.tolist(), -1.2, 2.4, 250, -220)

    sigma = 1 / (1 + np.exp(-at))
    slope = sigma + at * sigma * (1 - sigma)
    drawing.axes(40, 30, 340, 220, "z", "silu(z) = z · σ(z)")
    drawing.line(zip(across, up(np.zeros_like(z)), strict=True), opacity=0.25)
    curve = z / (1 + np.exp(-z))
    inside = curve < 2.4
    drawing.line(zip(np.array(across)[inside], np.array(up(curve))[inside], strict=True), INK, 2)
    inside = sigma * z > -1.2
    drawing.line(zip(np.array(across)[inside], np.array(up(sigma * z))[inside], strict=True), FIRST, 2)
    tangent = sigma * at + slope * (z - at)
    inside = (tangent > -1.2) & (tangent < 2.4)
    drawing.line(
        zip(np.array(across)[inside], np.array(up(tangent))[inside], strict=True), SECOND, 1.5, stroke_dasharray="5 4"
    )
    (x,), (y,), (zero,) = placed([at], low, high, 40, 340), up(np.array([sigma * at])), placed([0], low, high, 40, 340)
    drawing.dot(x, y, 5)
    drawing.dot(zero, up(np.array([0.0]))[0], 3, INK)
    drawing.text(x + 9, y + 14, f"z₀ = {at}")
    for row, (words, colour) in enumerate((("the function", INK), ("frozen: σ(z₀) · z", FIRST), ("tangent", SECOND))):
        drawing.line([(56, 52 + 18 * row), (76, 52 + 18 * row)], colour, 2)
        drawing.text(82, 56 + 18 * row, words)
    return drawing


def pattern(subject: Subject) -> Drawing:
    """The attention pattern of one head, which is one of the frozen factors."""
    count = len(subject.tokens)
    patterns = next(a for a in jax.tree.leaves(subject.lmap.frozen) if a.ndim == 4 and a.shape[-2:] == (count, count))
    layer, head = _widest(np.asarray(patterns))
    drawing, side = Drawing(440, 400, "An attention pattern"), 34
    drawing.text(100, 20, f"layer {layer}, head {head}", size=13)
    for query in range(count):
        drawing.text(92, 112 + side * query, subject.tokens[query], "end")
        drawing.text(0, 0, subject.tokens[query], transform=f"translate({121 + side * query} 84) rotate(-50)")
        for key in range(query + 1):
            weight = float(patterns[layer, head, query, key])
            drawing.box(100 + side * key, 91 + side * query, side - 2, side - 2, FIRST, opacity=f"{weight:.2f}")
            drawing.box(
                100 + side * key, 91 + side * query, side - 2, side - 2, "none", stroke=INK, stroke_opacity=0.15
            )
    return drawing


def _widest(patterns: np.ndarray) -> tuple[int, int]:
    """The head whose last query spreads its attention most, so that there is something to see."""
    last = patterns[:, :, -1]
    entropy = -np.sum(last * np.log(np.maximum(last, 1e-30)), axis=-1)
    layer, head = np.unravel_index(np.argmax(entropy), entropy.shape)
    return int(layer), int(head)


def columns(subject: Subject) -> Drawing:
    """The norms of the columns of J, sorted, for each token."""
    jacobian = np.asarray(subject.lmap.jacobian(progress=False))
    norms = -np.sort(-np.linalg.norm(jacobian, axis=0), axis=-1)
    drawing, width = Drawing(720, 190, "Norms of the columns of J"), 68
    top = float(norms.max())
    for t, token in enumerate(subject.tokens):
        start = 36 + 76 * t
        across = placed(range(norms.shape[1]), 0, norms.shape[1] - 1, start, width)
        up = placed(norms[t].tolist(), 0, top, 150, -110)
        drawing.line(zip(across, up, strict=True), FIRST, 2)
        drawing.line([(start, 150), (start + width, 150)], opacity=0.5)
        drawing.text(start + width / 2, 168, token, "middle")
        drawing.text(start + 4, up[0] - 5, f"{norms[t, 0]:.1f}", size=11)
    drawing.text(36, 20, "‖column of Jₜ‖, largest first, for each token t", size=13)
    return drawing


def reconstruction(subject: Subject) -> Drawing:
    """J x + b against f(x), feature by feature, of the frozen map and of the ordinary Jacobian."""
    lmap, model = subject.lmap, subject.model
    output = np.asarray(lmap.output)
    frozen = np.einsum("dts,ts->d", np.asarray(lmap.jacobian(progress=False)), lmap.x) + np.asarray(lmap.bias)
    ordinary = np.asarray(jax.jvp(lambda x: model(x)[-1], (lmap.x,), (lmap.x,))[1])
    drawing, side = Drawing(700, 330, "Reconstruction of the output"), 240
    limit = float(np.abs(np.concatenate([output, ordinary])).max()) * 1.05
    for start, (name, values, colour) in zip(
        (50, 400), (("frozen: J x + b", frozen, FIRST), ("ordinary Jacobian: J x", ordinary, SECOND)), strict=True
    ):
        error = np.linalg.norm(values - output) / np.linalg.norm(output)
        drawing.axes(start, 40, side, side, "f(x), each feature")
        drawing.text(start, 20, f"{name}", size=13)
        drawing.text(start, 35, f"off by {error:.0e}" if error < 1e-3 else f"off by {error:.2f} of |f(x)|", size=11)
        drawing.line([(start, 40 + side), (start + side, 40)], opacity=0.3)
        across = placed(output.tolist(), -limit, limit, start, side)
        for x, y in zip(across, placed(values.tolist(), -limit, limit, 40 + side, -side), strict=True):
            drawing.dot(x, y, 2.5, colour, opacity=0.7)
    return drawing


def baselines(subject: Subject) -> Drawing:
    """The residual and the stable rank of the map and of the four maps beside it."""
    rows = jaxlin.spectrum.compare_baselines(subject.model, subject.lmap.x, k=2).rows
    drawing = Drawing(700, 60 + 30 * len(rows), "Null baselines")
    drawing.text(170, 24, "residual, from 1e-16 to 1", size=13)
    drawing.text(440, 24, "stable rank", size=13)
    most = max(row.ranks.stable for row in rows)
    for index, row in enumerate(rows):
        y = 42 + 30 * index
        colour = FIRST if index == 0 else INK
        drawing.text(160, y + 14, row.name, "end")
        decades = max(np.log10(max(row.residual, 1e-16)) + 16, 0.05)
        drawing.box(170, y, 180 * decades / 16.5, 18, colour, opacity=0.75)
        drawing.text(176 + 180 * decades / 16.5, y + 14, f"{row.residual:.0e}", size=11)
        drawing.box(440, y, 200 * row.ranks.stable / most, 18, colour, opacity=0.75)
        drawing.text(446 + 200 * row.ranks.stable / most, y + 14, f"{row.ranks.stable:.1f}", size=11)
    return drawing


def away(subject: Subject) -> Drawing:
    """How soon the map fails on the way from the prompt to one with another word."""
    model, tokenizer = subject.model, subject.tokenizer
    substitutes = model.embed([tokenizer.to_single_token(word) for word in (" river", " king", " house", " cat")])
    fractions = [step / 10 for step in range(11)]
    curves: dict[str, list[float]] = {"error": [], "unchanged": []}
    for fraction in fractions:
        validity = jaxlin.causal.validity(model, subject.lmap.x, jnp.asarray(substitutes), fraction=fraction or 1e-6)
        for name, curve in curves.items():
            curve.append(float(np.median(getattr(validity, name)[1:])))
    drawing = Drawing(520, 320, "The map away from its prompt")
    top = max(map(max, curves.values())) * 1.1
    drawing.axes(60, 40, 400, 230, "share of the way from one word to another", "median error, relative to |f|")
    for label, fraction in zip(("0", "0.5", "1"), (0.0, 0.5, 1.0), strict=True):
        drawing.text(60 + 400 * fraction, 300, label, "middle", 11)
    for value in (0.0, top / 2):
        drawing.text(54, placed([value], 0, top, 270, -230)[0] + 4, f"{value:.2f}", "end", 11)
    legend = (("error", "J x′ + b, the map of the prompt", FIRST), ("unchanged", "f(x), no change at all", SECOND))
    for row, (name, words, colour) in enumerate(legend):
        drawing.line(
            zip(placed(fractions, 0, 1, 60, 400), placed(curves[name], 0, top, 270, -230), strict=True), colour, 2
        )
        drawing.line([(250, 216 + 20 * row), (272, 216 + 20 * row)], colour, 2)
        drawing.text(278, 220 + 20 * row, words)
    return drawing


FIGURES: dict[str, Callable[[Subject], Drawing]] = {
    function.__name__: function for function in (gate, pattern, columns, reconstruction, baselines, away)
}


def main() -> None:
    """Write each figure."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    what = subject()
    for name, draw in FIGURES.items():
        (folder / f"{name}.svg").write_text(str(draw(what)))


if __name__ == "__main__":
    main()
