"""Progress of long computations, on stderr where that is a terminal: bars, and what is being done."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from tqdm import tqdm

_STAGES: list[Live] = []
"""What is being done, if a `stage` says so."""

_BARS: set[int] = set()
"""The bars that are shown; while there are any, stages are not."""


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Show `text` beside a turning sign until the end of the block, but while there is a bar."""
    # stdout and stderr stay as they are: a bar that wrote through rich would not be shown before its line ends.
    options: Any = {"transient": True, "redirect_stdout": False, "redirect_stderr": False}
    with Live(Spinner("line", text), console=Console(stderr=True), **options) as live:
        _STAGES.append(live)
        try:
            yield
        finally:
            _STAGES.remove(live)


class _Bar(tqdm):
    """A bar, in the place of a stage."""

    def display(self, *arguments: Any, **options: Any) -> Any:
        for live in _STAGES:
            live.stop()
        _BARS.add(id(self))
        return super().display(*arguments, **options)

    def close(self) -> None:
        super().close()
        _BARS.discard(id(self))
        if not _BARS:
            for live in _STAGES:
                live.start(refresh=True)


def progress_bar(items: Iterable[Any] | None = None, *, show: bool, **options: Any) -> tqdm:
    """A tqdm bar over `items`, shown after a second if `show` is true and stderr is a terminal.

    Args:
        items: the items to iterate over; None for a bar that is updated by hand.
        show: whether to show the bar at all.
        **options: other arguments of `tqdm.tqdm`.
    """
    return _Bar(items, delay=1, disable=None if show else True, **options)
