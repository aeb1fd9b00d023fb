"""Plots in files."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import write_atomically
from jaxlin.plots.axes import NEW

FORMATS = (".png", ".svg", ".pdf")
"""The endings of files that a plot is written to."""

DPI = 160
"""Pixels per inch of a PNG."""


@checked
def check_format(path: Path) -> None:
    """Check that a plot can be written in the format of `path`.

    Raises:
        JaxlinError: another ending than those of `FORMATS`, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise JaxlinError(f"{path}: expected a file that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    if find_spec("matplotlib") is None:
        raise JaxlinError('Plot: expected matplotlib; found none. Install it: pip install "jaxlin[plot]".')


@checked
def save_plot(draw: Callable[[Any], Any], path: Path) -> None:
    """Draw in axes of a new figure, such as by the method ``plot`` of a result, and write it to `path`, atomically.

    Raises:
        JaxlinError: see `check_format`; or the file cannot be written.
    """
    check_format(path)
    from matplotlib.figure import Figure

    # Not pyplot's, which would open a window where there is a screen.
    figure = Figure(layout="constrained")
    figure.set_gid(NEW)
    draw(figure.subplots())
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=DPI))
