"""Draw docs/figures/house.svg: the packages of jaxlin, one row a layer, and which imports which.

    python docs/scripts/house.py

Layers are those of the contract in pyproject.toml, arrows those of the imports as grimp reads them. An arrow that
others imply is left out: where A imports B and B imports C, one from A to C is not drawn.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import grimp
from drawing import INK, PAPER, Drawing

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "figures" / "house.svg"
WIDTH, HEIGHT, GAP, ROW = 118, 34, 22, 78
"""Of a box, between two of a row, and from row to row, in pixels."""


def layers() -> list[list[str]]:
    """The packages of each layer, the topmost first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [row.split(" | ") for row in rows]


def arrows(packages: list[str]) -> dict[str, set[str]]:
    """Which packages each one imports."""
    graph = grimp.build_graph("jaxlin", cache_dir=None)
    for package in packages:
        graph.squash_module(f"jaxlin.{package}")
    return {
        package: {name.partition(".")[2] for name in graph.find_modules_directly_imported_by(f"jaxlin.{package}")}
        & (set(packages) - {package})
        for package in packages
    }


def reduced(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no others imply."""

    def below(package: str) -> set[str]:
        return imports[package].union(*map(below, imports[package]))

    return {
        package: {name for name in names if not any(name in below(other) for other in names)}
        for package, names in imports.items()
    }


def draw() -> Drawing:
    """The picture."""
    rows = layers()
    imports = arrows([package for row in rows for package in row])
    width = max(map(len, rows)) * (WIDTH + GAP) + 320
    drawing = Drawing(width, ROW * len(rows) + 10, "The packages of jaxlin")
    place = {
        package: ((width - len(row) * (WIDTH + GAP) + GAP) / 2 + index * (WIDTH + GAP), 20 + ROW * depth)
        for depth, row in enumerate(rows)
        for index, package in enumerate(row)
    }
    for package, names in reduced(imports).items():
        for name in sorted(names):
            _arrow(drawing, place[package], place[name])
    for package, (x, y) in place.items():
        drawing.box(x, y, WIDTH, HEIGHT, PAPER, stroke=INK, rx=6)
        drawing.text(x + WIDTH / 2, y + 22, package, "middle", 13)
    return drawing


def _arrow(drawing: Drawing, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From the lower edge of one box to the upper edge of another, round the rows between them."""
    (x0, y0), (x1, y1) = start, end
    x0, y0, x1 = x0 + WIDTH / 2, y0 + HEIGHT, x1 + WIDTH / 2
    # Where rows lie between, the curve swings out to the side that the target lies on, past the boxes.
    swing = 0 if y1 - y0 < ROW else (1 if x1 >= x0 else -1) * 0.85 * (y1 - y0)
    x0, x1 = x0 + swing * 0.06, x1 + swing * 0.06
    drawing.path(f"M{x0:.1f},{y0:.1f} C{x0 + swing:.1f},{y0 + 40:.1f} {x1 + swing:.1f},{y1 - 40:.1f} {x1:.1f},{y1:.1f}")
    drawing.path(f"M{x1 - 4:.1f},{y1 - 7:.1f} L{x1:.1f},{y1:.1f} L{x1 + 4:.1f},{y1 - 7:.1f}")


if __name__ == "__main__":
    PICTURE.write_text(str(draw()))
