"""An `Explanation` in a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import printable
from jaxlin.report.explanation import Explanation, Ranks

BAR = 28
"""Columns of the longest bar."""


def show(found: Explanation, console: Console) -> None:
    """Print `found`."""
    # Tokens may look like rich's markup, so each text is a `Text`; joined, because an accent can be a token.
    prompt = Text(printable("".join(found.tokens[: found.position + 1])), style="bold")
    console.print(prompt.append(printable("".join(found.tokens[found.position + 1 :])), style="dim"))
    likely = "   ".join(f"{visible(token)} {probability:.1%}" for token, probability in found.next_tokens)
    console.print(Text("next      ").append(likely))
    how = f"rule {found.rule}, {found.dtype}, {'all rows' if found.spectrum == 'dense' else 'sampled'}"
    console.print(f"residual  |Jx + b - f(x)| / |f(x)| = {found.residual:.1e}   ({how})")
    console.print()
    console.print(_contributions(found))
    if found.triplets:
        console.print()
        console.print(_spectrum(found))
    if found.ranks:
        console.print()
        console.print(f"rank      {_ranks(found.ranks)}")
    if found.ranks_without_first:
        console.print(f"          {_ranks(found.ranks_without_first)} without the first token")


def _contributions(found: Explanation) -> Table:
    total = sum(found.contributions) + found.bias
    title = Text(f"What makes the logit of {subject(found)}: {found.logit:.4f}")
    table = Table(title=title, title_justify="left")
    table.add_column("token")
    table.add_column("contribution", justify="right")
    table.add_column("")
    parts = list(zip(map(visible, found.tokens), found.contributions, strict=True))[: found.position + 1]
    longest = max(abs(value) for _, value in [*parts, ("", found.bias)]) or 1.0
    for token, value in [*parts, ("b, the biases", found.bias)]:
        sign, style = ("█", "green") if value > 0 else ("░", "red")
        bar = Text(sign * round(BAR * abs(value) / longest), style=style)
        table.add_row(Text(token), f"{value:+.4f}", bar)
    table.add_section()
    table.add_row("sum", f"{total:+.4f}", f"off by {found.defect:.0e} of the largest part")
    return table


def _spectrum(found: Explanation) -> Table:
    table = Table(
        title="The largest singular values of J",
        title_justify="left",
        caption="share: of the right vector's squared norm; near: the embeddings nearest to its part there",
        caption_justify="left",
    )
    table.add_column("σ", justify="right")
    table.add_column("left vector promotes")
    table.add_column("and demotes", style="dim")
    table.add_column("right vector reads (share: near)")
    for triplet in found.triplets:
        reads = "\n".join(
            f"{visible(token)} {share:.0%}: {_words(near)}" for token, share, near in triplet.reads if share >= 0.01
        )
        table.add_row(
            f"{triplet.value:.2f}", Text(_words(triplet.promotes)), Text(_words(triplet.demotes)), Text(reads)
        )
    return table


def _ranks(ranks: Ranks) -> str:
    return f"stable {ranks.stable:.2f}, effective {ranks.effective:.1f}"


def _words(words: list[str]) -> str:
    return " ".join(map(visible, words))


def subject(found: Explanation) -> str:
    """The target, and what it is measured over if there is such a word."""
    return visible(found.target) + (f" over that of {visible(found.over)}" if found.over is not None else "")


def visible(token: str) -> str:
    """A token with its leading space and its line breaks to be seen."""
    shown = token.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown).replace(" ", "·")
