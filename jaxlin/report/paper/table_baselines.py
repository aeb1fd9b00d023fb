"""Null baselines, which the paper lacks: the map beside others that reconstruct as well or should mean nothing."""

from dataclasses import asdict

from jaxlin.report.paper.markdown import table
from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.subject import Subject
from jaxlin.spectrum.null_baselines import Ranks, compare_baselines

DIRECTIONS = 8
"""The number of leading vectors of each freeze rule's map whose spaces are compared."""


def compute(subject: Subject) -> Data:
    """See `jaxlin.spectrum.null_baselines`."""

    def as_data(ranks: Ranks | None) -> Data | None:
        return None if ranks is None else {name: count for name, count in asdict(ranks).items() if count is not None}

    result = compare_baselines(subject.model, subject.x, k=DIRECTIONS, seed=subject.seed)
    return {
        "seed": result.seed,
        "rows": [
            {
                "name": each.name,
                "residual": each.residual,
                "largest": float(each.s[0]),
                "ranks": as_data(each.ranks),
                "without_first": as_data(each.without_first),
            }
            for each in result.rows
        ],
        "turns": [
            {"rules": list(turn.rules), "left": turn.left.tolist(), "right": turn.right.tolist()}
            for turn in result.angles
        ],
    }


def caption(data: Data) -> str:
    """What it shows."""
    frozen, one, weights, tokens, ordinary = data["rows"]
    ranks = [each["ranks"]["stable"] for each in (frozen, weights, tokens, ordinary)]
    turn = data["turns"][0]
    return (
        f"The map has a stable rank of {ranks[0]:.3g}, that of shuffled weights {ranks[1]:.3g}, of shuffled tokens "
        f"{ranks[2]:.3g}, the ordinary Jacobian {ranks[3]:.3g}; {one['name']} reconstructs the output too, to "
        f"{one['residual']:.1e}, with a rank of 1, and between the rules {turn['rules'][0]} and {turn['rules'][1]} the "
        f"spaces of the {len(turn['left'])} leading left vectors differ by up to {turn['left'][-1]:.0f}°."
    )


def markdown(data: Data) -> str:
    """A table of the maps, and one of the angles between freeze rules."""
    heads = ["map", "residual", "σ₁", "stable rank", "without the first token", "effective rank", "90 %", "99 %"]
    rows = []
    for each in data["rows"]:
        ranks, rest = each["ranks"], each["without_first"]
        rows.append(
            [
                each["name"].replace("|", r"\|"),
                f"{each['residual']:.1e}",
                f"{each['largest']:.4g}",
                f"{ranks['stable']:.4g}",
                "–" if rest is None else f"{rest['stable']:.4g}",
                f"{ranks['effective']:.4g}",
                str(ranks["energy90"]),
                str(ranks["energy99"]),
            ]
        )
    angles = [
        [" / ".join(turn["rules"]), *(", ".join(f"{angle:.0f}" for angle in turn[side]) for side in ("left", "right"))]
        for turn in data["turns"]
    ]
    return (
        f"{table(heads, rows)}\n"
        "90 % and 99 %: how many singular values hold that much of the sum of their squares.\n\n"
        f"{table(['rules', 'angles of the left vectors, °', 'of the right vectors, °'], angles)}"
    )


PART = Part("table_baselines", "The map beside its null baselines", compute, caption, markdown=markdown)
