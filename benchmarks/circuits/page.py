"""The part of BENCHMARKS.md on the comparison of circuits, from the files of its tasks."""

from collections.abc import Sequence
from typing import Any

from benchmarks.circuits.plot import counts_of

INTRODUCTION = """
Pairs of prompts of some tasks; the value of a prompt is the mean logit of its right answers less that of its wrong
ones. Each method scores all edges between heads, MLPs, embeddings and output; its scores are averaged over the pairs,
and the edges with the largest absolute means are left in the untouched model. Along all others each head and each MLP
reads what is written in the other prompt of the pair. A share is $(m - m') / (m_0 - m')$ of the mean values, with $m_0$
of the untouched model and $m'$ of the other prompts: 1 is the whole difference, 0 nothing of it.

*circuit* are the exact edges of the frozen model, as `jaxlin.circuit` gives them, of the prompt alone; *circuit,
difference* are the same edges with what is written in the prompt less what is written in the other; *EAP* is edge
attribution patching, which has the ordinary gradient in place of the frozen one, and *EAP-IG* its mean over ten inputs
between both prompts (Hanna, Pezzelle and Belinkov, 2024). *patching* is the measured effect of the other prompt's
values of one component, the mean of two pairs.
""".strip()


def section(tasks: Sequence[dict[str, Any]], plot: str | None = None) -> list[str]:
    """The lines of the part, with the plot at the path `plot`; none without tasks."""
    if not tasks:
        return []
    first = tasks[0]
    versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items() if v)
    lines = [f"## Faithfulness of circuits: {first['checkpoint']}", "", INTRODUCTION, ""]
    lines += [f"`{first['command']}`, python {first['python']}, {versions}; seed {first['seed']}.", ""]
    lines += [f"![shares of the tasks against the edges and components that are left]({plot})", ""] if plot else []
    lines += _table(
        ("task", "pairs", "tokens", "clean value above 0", "mean value", "of the other prompts", "a prompt"),
        [
            [
                *(task["task"], str(task["pairs"]), str(task["tokens"]), f"{task['able']:.0%}"),
                *(f"{task['clean']:.2f}", f"{task['other']:.2f}", f"`{task['example'][0]!r}`"),
            ]
            for task in tasks
        ],
    )
    lines += ["### Share with the edges alone", "", "By how many of the edges are left.", ""]
    lines += _shares(tasks, "within")
    lines += ["### Share without the edges", "", "By how many of the edges are cut, and all others left.", ""]
    lines += _shares(tasks, "without")
    lines += ["### Share with the edges alone, of values", ""]
    lines += ["Here queries and keys are those of the prompt, and heads read their values along the edges.", ""]
    lines += _shares(tasks, "values")
    lines += ["### Share with some components alone", "", "All others write what they write in the other prompt.", ""]
    lines += _shares(tasks, "components")
    lines += ["### Scores and the effects of single ablations", ""]
    lines += [
        "Spearman's rank correlation, the mean of two pairs: of all components; of some edges drawn of all; and of"
    ]
    lines += ["some drawn of those that are among the 300 largest of any method.", ""]
    kinds = ("components", "edges", "largest")
    rows = [
        [task["task"], method, *(f"{task['correlations'][kind][method]:.2f}" for kind in kinds)]
        for task in tasks
        for method in task["correlations"]["components"]
    ]
    return [*lines, *_table(("task", "method", "components", "edges", "largest edges"), rows)]


def _shares(tasks: Sequence[dict[str, Any]], key: str) -> list[str]:
    counts = sorted({count for task in tasks for count in counts_of(task[key])})
    rows = [
        [task["task"], method, *(f"{values[str(n)]:.2f}" if str(n) in values else "" for n in counts)]
        for task in tasks
        for method, values in task[key].items()
    ]
    return _table(("task", "method", *map(str, counts)), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]
