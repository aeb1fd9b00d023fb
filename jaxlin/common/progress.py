"""Progress bars for long computations."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, *, show: bool, **options: Any) -> tqdm:
    """A tqdm bar over `items`, shown after a second if `show` is true and stderr is a terminal.

    Args:
        items: the items to iterate over; None for a bar that is updated by hand.
        show: whether to show the bar at all.
        **options: other arguments of `tqdm.tqdm`.
    """
    return tqdm(items, delay=1, disable=None if show else True, **options)
