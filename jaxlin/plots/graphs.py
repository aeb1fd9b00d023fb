"""A graph of components in rows, one above another, with an arrow for each effect of one on another."""

from collections.abc import Mapping, Sequence

from jaxlin.common.arguments import checked
from jaxlin.plots.axes import INK, MINUS, PAPER, PLUS, Axes, fonts, label, resize


@checked
def layered_graph(ax: Axes, rows: Mapping[str, int], edges: Sequence[tuple[str, str, float]]) -> None:
    """Nodes in their rows, the lowest at the bottom, and edges as wide as their effects are large.

    Args:
        ax: the axes.
        rows: the row of each node, in the order in which the nodes of a row stand.
        edges: from which node to which, and the effect, by whose sign the colour is.
    """
    order = sorted(set(rows.values()))
    members = {row: [name for name, own in rows.items() if own == row] for row in order}
    widest = max(map(len, members.values()))
    resize(ax, 1.0 + 0.8 * widest, 0.8 + 0.5 * len(order))
    places = {
        name: ((index + 0.5) * widest / len(names), order.index(row))
        for row, names in members.items()
        for index, name in enumerate(names)
    }
    largest = max((abs(effect) for *_, effect in edges), default=1.0)
    for source, target, effect in edges:
        strength = abs(effect) / largest
        ax.annotate(
            "",
            xy=places[target],
            xytext=places[source],
            arrowprops={
                "arrowstyle": "-|>,head_width=0.15,head_length=0.3",
                "color": PLUS if effect >= 0 else MINUS,
                "linewidth": 0.4 + 2.6 * strength,
                "alpha": 0.35 + 0.65 * strength,
                "connectionstyle": "arc3,rad=0.12",
                "shrinkA": 8,
                "shrinkB": 8,
            },
        )
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": "0.6", "linewidth": 0.6}
        ax.text(x, y, label(name), ha="center", va="center", fontsize=7, color=INK, family=fonts(), bbox=box)
    ax.set_xlim(0, widest)
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.set_axis_off()
