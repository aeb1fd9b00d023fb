"""The plot of what is left of a task by how many edges or components are left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plot import reproducible_pyplot

CURVES = {
    "within": ("the edges alone", "edges left"),
    "without": ("all but the edges", "edges cut"),
    "values": ("the edges of values alone", "edges left"),
    "components": ("the components alone", "components left"),
}
"""The key of each row of panels, what its shares are with, and what is counted."""

STYLES = {
    "circuit": "C9s-",
    "circuit, difference": "C0o-",
    "EAP": "C1^--",
    "EAP-IG": "C3v--",
    "patching": "C2D:",
    "random": "C7x:",
}


def faithfulness(tasks: Sequence[dict[str, Any]], out: Path) -> bool:
    """Draw the shares of all tasks, a column of panels for each; return False, and write no file, if there is none.

    Args:
        tasks: what `benchmarks.circuits.comparison` gave for each.
        out: the file to write.
    """
    if not tasks:
        return False
    plt = reproducible_pyplot()
    size = 2.6 * len(tasks), 2.2 * len(CURVES)
    figure, panels = plt.subplots(
        len(CURVES), len(tasks), figsize=size, sharex="row", sharey=True, squeeze=False, layout="constrained"
    )
    lines = {}
    for row, (key, (what, counted)) in zip(panels, CURVES.items(), strict=True):
        for axis, task in zip(row, tasks, strict=True):
            for method, shares in task[key].items():
                points = sorted((int(count), share) for count, share in shares.items())
                (lines[method],) = axis.plot(*zip(*points, strict=True), STYLES[method], markersize=3, linewidth=1)
            axis.set(xscale="log", xlabel=counted)
            axis.set_xticks(counts_of(task[key]), map("{:g}".format, counts_of(task[key])), fontsize="small")
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"share with\n{what}")
    for axis, task in zip(panels[0], tasks, strict=True):
        axis.set_title(task["task"])
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=len(lines), fontsize="small")
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)
    return True


def counts_of(shares: Mapping[str, Mapping[str, float]]) -> list[int]:
    """The numbers of edges or components at which any method was measured."""
    return sorted({int(count) for values in shares.values() for count in values})
