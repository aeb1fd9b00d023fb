"""SVG by hand: a few shapes in the colours of the site's theme, or in plain ones where the file is seen by itself.

A plotting library writes colours as numbers, which a dark page cannot change; these name the theme's variables.
"""

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape, quoteattr

INK = "var(--md-default-fg-color, #24292f)"
PAPER = "var(--md-default-bg-color, #ffffff)"
FIRST = "var(--figure-first, #3949ab)"
SECOND = "var(--figure-second, #c2410c)"
FONT = "ui-sans-serif, system-ui, sans-serif"

Point = tuple[float, float]


class Drawing:
    """Shapes on a sheet of `width` by `height` pixels; each method adds one."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def line(self, points: Iterable[Point], colour: str = INK, width: float = 1.0, **attributes: object) -> None:
        """A line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._add("polyline", points=path, fill="none", stroke=colour, stroke_width=width, **attributes)

    def path(self, steps: str, colour: str = FIRST, width: float = 1.3, **attributes: object) -> None:
        """A curve in SVG's own words."""
        self._add("path", d=steps, fill="none", stroke=colour, stroke_width=width, **attributes)

    def box(self, x: float, y: float, width: float, height: float, colour: str = INK, **attributes: object) -> None:
        """A filled rectangle."""
        self._add("rect", x=_px(x), y=_px(y), width=_px(width), height=_px(height), fill=colour, **attributes)

    def dot(self, x: float, y: float, radius: float = 3.0, colour: str = FIRST, **attributes: object) -> None:
        """A filled circle."""
        self._add("circle", cx=_px(x), cy=_px(y), r=radius, fill=colour, **attributes)

    def text(
        self, x: float, y: float, words: str, anchor: str = "start", size: float = 12, **attributes: object
    ) -> None:
        """Words with their baseline at `y`."""
        place = {"x": _px(x), "y": _px(y), "text_anchor": anchor, "font_size": size, "fill": INK}
        self._add("text", words, **place, **attributes)

    def _add(self, element: str, words: str | None = None, **attributes: object) -> None:
        """An element with its attributes, an underscore for each hyphen of a name."""
        pairs = " ".join(f"{name.replace('_', '-')}={quoteattr(str(value))}" for name, value in attributes.items())
        self.shapes.append(
            f"<{element} {pairs}/>" if words is None else f"<{element} {pairs}>{escape(words)}</{element}>"
        )

    def axes(self, x: float, y: float, width: float, height: float, across: str, up: str = "") -> None:
        """The lower and the left edge of a panel, with their names."""
        self.line([(x, y), (x, y + height), (x + width, y + height)], opacity=0.5)
        self.text(x + width / 2, y + height + 16, across, "middle")
        if up:
            self.text(x, y - 8, up, "start")

    def __str__(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" font-family="{FONT}">'
        )
        sheet = f'<rect width="{self.width:g}" height="{self.height:g}" fill="{PAPER}"/>'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", sheet, *self.shapes, "</svg>"]) + "\n"


def _px(length: float) -> str:
    """A length to a tenth of a pixel, which no eye resolves."""
    return f"{length:.1f}"


def placed(values: Sequence[float], low: float, high: float, start: float, length: float) -> list[float]:
    """Where values between `low` and `high` lie on an axis of `length` pixels; a negative length points upward."""
    return [start + length * (value - low) / (high - low) for value in values]
