"""Axes to draw in, the style of everything drawn, and text that the fonts have glyphs for."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Annotated, Any

from jaxlin.common.annotations import having
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError

Axes = Annotated[Any, having("axes of matplotlib, as matplotlib.pyplot.subplots gives", "figure", "imshow")]
"""matplotlib's axes, which is not imported before something is drawn."""

PLUS, MINUS, PAPER, INK = "#2f7ec4", "#d0702a", "#fbfaf7", "#1f1d1a"
"""The colours of positive and negative numbers, of zero, and of text."""

COLOURS = (PLUS, MINUS, "#009e73", "#8c8c8c", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
"""The colours of curves, which can be told apart with any colour vision.

Source: Okabe and Ito, "Color universal design", 2008, with the first two of the page of an explanation.
"""

FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Segoe UI Symbol",
)
"""The fonts that text is drawn in: each character in the first that is installed and has it."""

NEW = "jaxlin"
"""The group id of figures that are made here, whose size may be changed."""


@checked
def axes_or_new(ax: Axes | None) -> Any:
    """`ax`, or the axes of a new figure.

    Raises:
        JaxlinError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise JaxlinError('Plot: expected matplotlib; found none. Install it: pip install "jaxlin[plot]".')
    if ax is None:
        from matplotlib import pyplot

        figure, ax = pyplot.subplots(layout="constrained")
        figure.set_gid(NEW)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(which="both", labelsize=8)
    return ax


def resize(ax: Any, width: float, height: float) -> None:
    """Give a new figure this size, in inches, within bounds; a figure of the caller stays as it is."""
    if ax.figure.get_gid() == NEW:
        ax.figure.set_size_inches(min(max(width, 4.0), 16.0), min(max(height, 2.4), 14.0))


def label(text: str, length: int = 18) -> str:
    """`text` as matplotlib can draw it: without formulas, and with the number of each character that no font has."""
    glyphs = _glyphs()
    glyph_text = "".join(c if ord(c) in glyphs else "" if not c.isprintable() else f"U+{ord(c):X}" for c in text)
    glyph_text = glyph_text if len(glyph_text) <= length else glyph_text[: length - 1] + "…"
    return glyph_text.replace("$", r"\$")


def draw_ticks(set_ticks: Any, labels: Sequence[str], most: int, *, rotation: int = 0, length: int = 18) -> None:
    """A label at each place of an axis, or evenly at `most` of them, each of at most `length` characters."""
    step = -(-len(labels) // most)
    places = range(0, len(labels), step) if labels else []
    set_ticks(list(places), [label(labels[i], length) for i in places], fontsize=8, rotation=rotation, family=fonts())


@checked
def write(ax: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Write the title and the names of the axes; an empty text leaves what is there."""
    font = {"family": fonts()}
    if title:
        ax.set_title(label(title, 90), loc="left", fontsize=9, **font)
    if xlabel:
        ax.set_xlabel(label(xlabel, 60), fontsize=8, **font)
    if ylabel:
        ax.set_ylabel(label(ylabel, 60), fontsize=8, **font)


@cache
def fonts() -> list[str]:
    """The fonts of `FONTS` that are installed."""
    from matplotlib.font_manager import fontManager

    installed = {entry.name for entry in fontManager.ttflist}
    return [name for name in FONTS if name in installed]


@cache
def _glyphs() -> frozenset[int]:
    """The characters that the fonts have."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(code for name in fonts() for code in get_font(findfont(name)).get_charmap())
