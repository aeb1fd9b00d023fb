"""Write BENCHMARKS.md from the committed results: ``python -m benchmarks.report``.

Bars are those of `benchmarks.bars` today, whatever they were when a result was measured.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.circuits import page
from benchmarks.circuits.plot import faithfulness
from benchmarks.plot import cost_against_tokens
from benchmarks.results import RESULTS
from benchmarks.table import COLUMNS, cells, duration, size, verdict

ROOT = Path(__file__).parents[1]

INTRODUCTION = """
Every comparison is of the same weights and tokens in one process; the runs of what is compared are interleaved, and
medians are quoted, with compilation apart. *Temporary* is what the compiler says that a program takes beside its
arguments and results; *resident* is the most that the process came to hold during a run beyond what it held before.
*Of floor* is the least time that a method can take, over its median: its matrix products at the rate of a 4096 x 4096
product of float32 matrices (8192 x 8192 on a GPU, and in the precision of the row), or the bytes that it must read and
write at the rate of a large copy, whichever takes longer, both measured in the same run. Peers are in italics.

The dense map has two bars of speed: the floor of the plain transposes over its time is at least 0.95, and the fastest
way in PyTorch is never faster. How many times slower PyTorch is depends on its matrix products on that machine, and has
no bar.
""".strip()


def report(
    documents: Mapping[str, dict[str, Any]],
    plot: str | None = None,
    circuits: Sequence[dict[str, Any]] = (),
    curves: str | None = None,
) -> str:
    """The page.

    Args:
        documents: what `benchmarks.results.document` gave, by the name of the file.
        plot: the path of the plot; None for a page without one.
        circuits: the tasks that `benchmarks.circuits` has compared.
        curves: the path of their plot.
    """
    lines = ["# Benchmarks", "", "Written by `python -m benchmarks.report` from `benchmarks/results/*.json`.", ""]
    lines += [INTRODUCTION, "", "## Where we lose", "", *losses(documents), ""]
    if plot is not None:
        lines += ["## Cost against tokens", "", f"![seconds against tokens]({plot})", ""]
    for name, result in documents.items():
        lines += section(name, result)
    lines += page.section(circuits, curves)
    return "\n".join(lines).rstrip() + "\n"


def losses(documents: Mapping[str, dict[str, Any]]) -> list[str]:
    """A line for every bar that is missed, and for every peer that is faster than our fastest row beside it."""
    lines = []
    for name, result in documents.items():
        for ratio in result["ratios"]:
            what, where, value, bar, outcome = verdict(ratio)
            if outcome == "not met":
                lines.append(f"- {name}: {what}, {where}: {value}, where the bar is {bar}.")
        for ours, peer in _beaten(result["rows"]):
            times = f"{duration(ours['median'])} against {duration(peer['median'])}"
            lines.append(f"- {name}: {peer['name']} is faster than our {ours['name']}, {size(ours['size'])}: {times}.")
    return lines or ["Nowhere, in what is measured here."]


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


REFERENCES = ("forward pass", "forward pass, last logits")
"""Rows of ours that are no method of their own, but what another row is compared with."""


def section(name: str, result: dict[str, Any]) -> list[str]:
    """The lines of one result: how it was measured, its ratios, and a table for each group of rows."""
    device, versions = result["device"], ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    count = f"{device['count']} x {device['kind']}, {device['cpus']} CPUs of {device['processor']}"
    lines = [f"## {name}: {result['checkpoint']}", "", f"On {count}; computed in {result['dtype']}.", ""]
    seeds = ", ".join(f"{what} {seed}" for what, seed in result["seeds"].items())
    code = f"commit {result['commit']}, " if result.get("commit") else ""  # older files have no commit
    conditions = f"{result['runs']} rounds, {code}python {result['python']}, {versions}"
    lines += [f"`{result['command']}`, {conditions}; seeds: {seeds}.", ""]
    lines += table(("ratio", "size", "value", "bar", ""), [_marked(verdict(ratio)) for ratio in result["ratios"]])
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["group"] == group]
        lines += [f"### {group}", "", *table(COLUMNS, [_peer(row) for row in rows])]
    return lines + [f"- {note}" for note in result["notes"]] + [""] * bool(result["notes"])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, without the columns that are empty."""
    filled = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[columns[i] for i in filled], ["---"] * len(filled), *([row[i] for i in filled] for row in rows)]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _marked(words: list[str]) -> list[str]:
    return [f"**{word}**" if words[-1] == "not met" and word else word for word in words]


def _peer(row: dict[str, Any]) -> list[str]:
    name, *rest = cells(row)
    return [name if row["ours"] else f"*{name}*", *rest]


def main(argv: list[str] | None = None) -> int:
    """Write the page and its plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the JSON files")
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md")
    args = parser.parse_args(argv)
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(args.results.glob("*.json"))}
    if not documents:
        print(f"No results are in {args.results}: `python -m benchmarks --json FILE` writes them.", file=sys.stderr)
        return 1
    circuits = [json.loads(path.read_text()) for path in sorted(args.results.glob("circuits/*.json"))]
    cost, curves = args.results / "cost.svg", args.results / "circuits.svg"
    drawn = {cost: cost_against_tokens(documents, cost), curves: faithfulness(circuits, curves)}
    paths = {figure: os.path.relpath(figure, args.out.parent) for figure, was_drawn in drawn.items() if was_drawn}
    args.out.write_text(report(documents, paths.get(cost), circuits, paths.get(curves)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
