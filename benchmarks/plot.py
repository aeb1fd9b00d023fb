"""The plot of the time of a call against the length of the prompt."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GROUPS = ("dense", "spectrum", "attribution")


def cost_against_tokens(documents: Mapping[str, dict[str, Any]], out: Path) -> bool:
    """Draw the medians of all methods that were run at several lengths; return False, and write no file, if none was.

    Args:
        documents: what `benchmarks.results.document` gave, by name; each with such methods gets a panel.
        out: the file to write.
    """
    plt = reproducible_pyplot()
    panels = {name: lines for name, result in documents.items() if (lines := curves(result["rows"]))}
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 5), squeeze=False, layout="constrained")
    for axis, (name, lines) in zip(axes[0], panels.items(), strict=True):
        for label, (points, ours) in lines.items():
            axis.loglog(*zip(*points, strict=True), "o-" if ours else "s--", label=label, base=2)
        axis.set(title=name, xlabel="tokens", ylabel="seconds", yscale="log")
        axis.legend(fontsize="small")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)
    return True


def reproducible_pyplot() -> Any:
    """The pyplot of matplotlib, without a window, and so that the same results make the same file."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jaxlin"
    from matplotlib import pyplot

    return pyplot


def curves(rows: list[dict[str, Any]]) -> dict[str, tuple[list[tuple[int, float]], bool]]:
    """The points (tokens, seconds) of each method with two or more, and whether it is ours."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    ours = {}
    for row in rows:
        if row["group"] in GROUPS:
            name = f"{row['group']}: {row['name']}"
            points[name].append((row["size"]["tokens"], row["median"]))
            ours[name] = row["ours"]
    return {name: (sorted(pairs), ours[name]) for name, pairs in points.items() if len(pairs) > 1}
