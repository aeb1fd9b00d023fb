"""What was found, in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def show(said: dict[str, Any], console: Console) -> None:
    """Print a document of `benchmarks.results.document`."""
    device = said["device"]
    console.print(
        f"{device['kind']} ({device['processor']}), {device['cpus']} CPUs, {said['dtype']}, {said['checkpoint']}"
    )
    for group in dict.fromkeys(row["group"] for row in said["rows"]):
        console.print(_rows(group, [row for row in said["rows"] if row["group"] == group]))
    console.print(_ratios(said["ratios"]))
    for note in said["notes"]:
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
    table = Table("ratio", "size", "found", "bar", "", title="ratios", title_justify="left")
    for found in ratios:
        table.add_row(*verdict(found), style="red" if found["met"] is False else None)
    return table


def verdict(found: dict[str, Any]) -> list[str]:
    """A ratio as text: what it is, where, its value, its bar and whether it is met."""
    limit, sign = found["limit"], "≥" if found["at_least"] else "≤"
    bar = "" if limit is None else f"{sign} {limit:.3g}"
    met = {None: "", True: "met", False: "not met"}[found["met"]]
    return [found["says"], size(found["size"]), f"{found['value']:.3g}", bar, met]


def size(of: dict[str, Any]) -> str:
    """``8 tokens, k 8``."""
    return ", ".join(f"{value} tokens" if name == "tokens" else f"{name} {value}" for name, value in of.items())


def duration(seconds: float | None) -> str:
    """In seconds or milliseconds."""
    if seconds is None:
        return ""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def memory(count: float | None) -> str:
    """In MiB or GiB."""
    if count is None:
        return ""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
