"""What commands do with a result: print it as JSON, write its page, draw it."""

from pathlib import Path
from typing import Any


def check_files(html: Path | None, plot: Path | None) -> None:
    """Check, before anything is computed, that the files can be written.

    Raises:
        ReportError: one of them cannot.
        JaxlinError: a plot of another format, or without matplotlib.
    """
    from jaxlin.plots import check_format
    from jaxlin.report import check_writable

    if plot is not None:
        check_format(plot)
    for path in (html, plot):
        if path is not None:
            check_writable(path)


def print_json(values: Any) -> None:
    """Print plain values as JSON."""
    from jaxlin.common.printable import finite, json_text

    print(json_text(finite(values), indent=2))


def name_files(console: Any, html: Path | None, plot: Path | None) -> None:
    """Print which files were written."""
    from rich.text import Text

    from jaxlin.common.printable import printable

    for name, path in (("page", html), ("plot", plot)):
        if path is not None:
            console.print(Text(f"{name:<11} {printable(str(path))}"), soft_wrap=True)
