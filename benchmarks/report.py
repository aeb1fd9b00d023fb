"""BENCHMARKS.md from the results that are committed: ``python -m benchmarks.report``."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plot import cost_against_tokens
from benchmarks.results import RESULTS
from benchmarks.table import COLUMNS, cells, duration, size, verdict

ROOT = Path(__file__).parents[1]

INTRODUCTION = """
Every comparison is of the same weights and tokens in one process; the runs of what is compared are interleaved, and
medians are quoted, with compilation apart. *Temporary* is what the compiler says that a program takes beside its
arguments and results; *resident* is the most that the process came to hold during a run beyond what it held before.
*Of floor* is the least time that there is for what a method does, over its median: its matrix products at the rate of
a 4096 x 4096 product of float32 matrices (8192 x 8192 on a GPU, and in the precision of the row), or the bytes that it
must read and write at the rate of a large copy, whichever takes longer, both measured in the same run. Peers are in
italics.
""".strip()


def report(documents: Mapping[str, dict[str, Any]], plot: str | None = None) -> str:
    """The page.

    Args:
        documents: of `benchmarks.results.document`, by the name of their file.
        plot: the path of the plot; None for a page without one.
    """
    lines = ["# Benchmarks", "", "Written by `python -m benchmarks.report` from `benchmarks/results/*.json`.", ""]
    lines += [INTRODUCTION, "", "## Where we lose", "", *losses(documents), ""]
    if plot is not None:
        lines += ["## Cost against tokens", "", f"![seconds against tokens]({plot})", ""]
    for name, said in documents.items():
        lines += section(name, said)
    return "\n".join(lines).rstrip() + "\n"


def losses(documents: Mapping[str, dict[str, Any]]) -> list[str]:
    """Bars that are not met, and rows of ours that a peer is faster than: all of them."""
    found = []
    for name, said in documents.items():
        for ratio in said["ratios"]:
            if ratio["met"] is False:
                what, where, value, bar, _ = verdict(ratio)
                found.append(f"- {name}: {what}, {where}: {value}, where the bar is {bar}.")
        for ours, peer in _beaten(said["rows"]):
            times = f"{duration(ours['median'])} against {duration(peer['median'])}"
            found.append(f"- {name}: {peer['name']} is faster than our {ours['name']}, {size(ours['size'])}: {times}.")
    return found or ["Nowhere, in what is measured here."]


def _beaten(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of a row of ours, the fastest of its group and size, and a peer's row that is faster."""
    pairs = []
    for peer in (row for row in rows if not row["ours"]):
        ours = [row for row in rows if row["ours"] and (row["group"], row["size"]) == (peer["group"], peer["size"])]
        ours = [row for row in ours if row["name"] not in REFERENCES]
        best = min(ours, key=lambda row: row["median"], default=None)
        if best is not None and peer["median"] < best["median"]:
            pairs.append((best, peer))
    return pairs


REFERENCES = ("forward pass",)
"""Rows that do something else, to which ours are compared."""


def section(name: str, said: dict[str, Any]) -> list[str]:
    """What was measured on one device."""
    device, versions = said["device"], ", ".join(f"{k} {v}" for k, v in said["versions"].items() if v)
    count = f"{device['count']} x {device['kind']}, {device['cpus']} CPUs of {device['processor']}"
    lines = [f"## {name}: {said['checkpoint']}", "", f"On {count}; computed in {said['dtype']}.", ""]
    seeds = ", ".join(f"{what} {seed}" for what, seed in said["seeds"].items())
    code = f"commit {said['commit']}, " if said.get("commit") else ""  # older files do not say it
    ran = f"{said['runs']} rounds, {code}python {said['python']}, {versions}"
    lines += [f"`{said['command']}`, {ran}; seeds: {seeds}.", ""]
    lines += table(("ratio", "size", "found", "bar", ""), [_marked(verdict(ratio)) for ratio in said["ratios"]])
    for group in dict.fromkeys(row["group"] for row in said["rows"]):
        rows = [row for row in said["rows"] if row["group"] == group]
        lines += [f"### {group}", "", *table(COLUMNS, [_peer(row) for row in rows])]
    return lines + [f"- {note}" for note in said["notes"]] + [""] * bool(said["notes"])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, without the columns that are empty."""
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[columns[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _marked(words: list[str]) -> list[str]:
    return [f"**{word}**" if words[-1] == "not met" and word else word for word in words]


def _peer(row: dict[str, Any]) -> list[str]:
    name, *rest = cells(row)
    return [name if row["ours"] else f"*{name}*", *rest]


def main(argv: list[str] | None = None) -> int:
    """Write the page and its plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the JSON files")
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md")
    args = parser.parse_args(argv)
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(args.results.glob("*.json"))}
    if not documents:
        print(f"No results are in {args.results}: `python -m benchmarks --json FILE` writes them.", file=sys.stderr)
        return 1
    figure = args.results / "cost.svg"
    drawn = cost_against_tokens(documents, figure)
    plot = os.path.relpath(figure, args.out.parent) if drawn else None
    args.out.write_text(report(documents, plot))
    return 0


if __name__ == "__main__":
    sys.exit(main())
