"""The style of all figures, and their rendering to files."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from jaxlin.common.token_names import visible
from jaxlin.report.paper.run_folder import PaperError

STYLE: dict[Any, Any] = {
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.1,
    "savefig.dpi": 200,
    "svg.hashsalt": "jaxlin",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}

COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#8c8c8c")
"""Colours that can be told apart with any colour vision.

Source: Okabe and Ito, "Color universal design", 2008; grey for their yellow.
"""

KINDS = {
    "resid_post": ("residual stream", "#000000"),
    "attn_out": ("attention", "#0072b2"),
    "mlp_out": ("MLP", "#d55e00"),
}
"""The name and colour of each site."""


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        PaperError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise PaperError("Figures: expected matplotlib; found none. Install it: pip install matplotlib.")


def rendered(draw: Callable[[Any, Any], None], data: dict[str, Any]) -> dict[str, bytes]:
    """The figure as PNG and SVG, by suffix; the same data give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    files = {}
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(data, figure)
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = BytesIO()
            figure.savefig(content, format=suffix, metadata=metadata)
            files[suffix] = content.getvalue()
    return files


def shown_tokens(count: int, limit: int = len(COLOURS)) -> list[int]:
    """The indices of the tokens that are shown: all, or the first ones and the last."""
    return list(range(count)) if count <= limit else [*range(limit - 1), count - 1]


def label(token: str, length: int = 14) -> str:
    """A token as matplotlib can draw it, without formulas and characters that the font lacks."""
    shown = "".join(c if ord(c) in _glyphs() else "□" for c in visible(token))
    return (shown if len(shown) <= length else shown[: length - 1] + "…").replace("$", r"\$")


def labels(tokens: Sequence[str], width: int) -> str:
    """As many of the tokens as fit into `width` characters, but at least the first."""
    parts = [label(token) for token in tokens]
    fitting = parts[:1]
    for part in parts[1:]:
        if sum(map(len, fitting)) + 2 * len(fitting) + len(part) > width:
            break
        fitting.append(part)
    return "  ".join(fitting)


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def plain_log(axis: Any) -> None:
    """Label a logarithmic axis that has its data with plain numbers, as many as there is room for."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    ratio = high / low
    steps = (1, 1.2, 1.5, 2, 3, 4, 5, 7) if ratio < 8 else (1, 2, 5) if ratio < 500 else (1,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def over_words(figure: Any, tokens: int, panels: int = 1) -> tuple[list[Any], Any, list[int]]:
    """Panels side by side over a table of tokens: the axes of the panels, those of the table, and the shown tokens."""
    shown = shown_tokens(tokens)
    figure.set_size_inches(7.4, 3.1 + 0.19 * len(shown))
    grid = figure.add_gridspec(2, panels, height_ratios=[2.5, 0.4 + 0.19 * len(shown)])
    return [figure.add_subplot(grid[0, i]) for i in range(panels)], figure.add_subplot(grid[1, :]), shown


def token_legend(axes: Any) -> None:
    """A legend on the right that names the token of each curve."""
    axes.legend(title="input token", title_fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def text_table(axes: Any, heads: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[float]) -> None:
    """Rows of text in columns that begin at `places`, from 0 to 1."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) + 0.5, -0.6)
    for place, head in zip(places, heads, strict=True):
        axes.text(place, 0, head, fontsize=7, color="0.4", va="center")
    for y, row in enumerate(rows, start=1):
        for place, cell in zip(places, row, strict=True):
            axes.text(place, y, cell, fontsize=7, va="center")
    axes.axhline(0.5, color="0.7", linewidth=0.5)
