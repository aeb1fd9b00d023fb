"""Results in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bars import BARS


def show(result: dict[str, Any], console: Console) -> None:
    """Print what `benchmarks.results.document` gave."""
    device = result["device"]
    console.print(
        f"{device['kind']} ({device['processor']}), {device['cpus']} CPUs, {result['dtype']}, {result['checkpoint']}"
    )
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        console.print(_rows(group, [row for row in result["rows"] if row["group"] == group]))
    console.print(_ratios(result["ratios"]))
    for note in result["notes"]:
        console.print(f"- {note}", highlight=False)


COLUMNS = ("method", "size", "median", "compile", "temporary", "resident", "of floor", "figures")


def _rows(group: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(*COLUMNS, title=group, title_justify="left")
    for row in rows:
        table.add_row(*cells(row), style=None if row["ours"] else "dim")
    return table


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text, in the order of `COLUMNS`."""
    return [
        row["name"],
        size(row["size"]),
        duration(row["median"]),
        duration(row["compile"]),
        memory(row["temporary"]),
        memory(row["resident"]),
        "" if row["fraction"] is None else f"{row['fraction']:.0%}",
        ", ".join(f"{name} {value:.3g}" for name, value in row["figures"].items()),
    ]


def _ratios(ratios: Sequence[dict[str, Any]]) -> Table:
    table = Table("ratio", "size", "value", "bar", "", title="ratios", title_justify="left")
    for ratio in ratios:
        cells = verdict(ratio)
        table.add_row(*cells, style="red" if cells[-1] == "not met" else None)
    return table


def verdict(ratio: dict[str, Any]) -> list[str]:
    """A ratio as text: what it is, its size, its value, its bar of today, and whether it meets that."""
    bar, value = BARS[ratio["key"]], ratio["value"]
    outcome = {None: "", True: "met", False: "not met"}[bar.met(value)]
    return [bar.says, size(ratio["size"]), f"{value:.3g}", str(bar), outcome]


def size(sizes: dict[str, Any]) -> str:
    """As ``8 tokens, k 8``."""
    return ", ".join(f"{value} tokens" if name == "tokens" else f"{name} {value}" for name, value in sizes.items())


def duration(seconds: float | None) -> str:
    """A time in seconds or milliseconds."""
    if seconds is None:
        return ""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def memory(count: float | None) -> str:
    """A number of bytes in MiB or GiB."""
    if count is None:
        return ""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
