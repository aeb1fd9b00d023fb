"""What commands do with a result: print it as JSON, write its page, draw it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlin.report.commands.options import SMALL_MODEL


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


def give(
    results: Sequence[Any],
    show: Callable[[Any], None],
    *,
    model: str | None,
    as_json: bool,
    html: Path | None,
    plot: Path | None,
    values: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Write the page and the plot of results where they are asked for, and print the results as JSON or as text.

    Args:
        results: the page has all of them, the plot the first.
        show: prints them on a console.
        model: the name that the model was loaded by, for the page.
        as_json: whether to print JSON instead.
        html: the file of the page; None for no page.
        plot: the file of the plot; None for no plot.
        values: what the JSON has; that of the first result unless given.
    """
    from rich.console import Console

    from jaxlin.plots import save_plot
    from jaxlin.report import Explanation, write
    from jaxlin.report.result_page import write_result

    first, name = results[0], model or SMALL_MODEL
    if html is not None and isinstance(first, Explanation):
        write(first, html, name=name)
    elif html is not None:
        write_result(results, html, name=name)
    if plot is not None:
        save_plot(first.plot, plot)
    if as_json:
        print_json(first.to_dict() if values is None else values())
    else:
        console = Console(highlight=False)
        show(console)
        _name_files(console, html, plot)


def _name_files(console: Any, html: Path | None, plot: Path | None) -> None:
    """Print which files were written."""
    from rich.text import Text

    from jaxlin.common.printable import printable

    for name, path in (("page", html), ("plot", plot)):
        if path is not None:
            console.print(Text(f"{name:<11} {printable(str(path))}"), soft_wrap=True)
