"""An `Explanation` in a terminal."""

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import printable
from jaxlin.common.token_names import left_to_right, token_names, visible
from jaxlin.report.explanation import Explanation

BAR = 28
"""Columns of the longest bar, where there is room."""

BORDERS = 10
"""Columns of the borders of a table with three columns, and the space beside them."""

EXPERTS = 8
"""The experts that are listed, those of the largest contributions."""

EXPERT_COLUMNS = 46
"""Columns of the table of experts without its bars."""

SPECTRUM_CAPTION = (
    "J is a sum of terms σ u vᵀ: as far as the input has the pattern v (right vector), the output moves along u "
    "(left vector), σ times as far. Promotes, demotes: words whose logits u raises and lowers most. Reads: tokens of "
    "the prompt where v is large, their share of |v|², and words whose embeddings are nearest to v there."
)


def show(explanation: Explanation, console: Console) -> None:
    """Print `explanation`."""
    # Tokens may look like rich's markup, so each text is a `Text`; joined, because an accent can be a token.
    prompt = Text(printable(explanation.prompt), style="bold")
    console.print(prompt.append(printable(explanation.rest), style="dim"))
    likely = "   ".join(f"{_words([token])} {probability:.1%}" for token, probability in explanation.next_tokens)
    estimate = explanation.residual_estimate
    measured = "measured on all rows of J" if estimate is None else estimate.reliability
    facts = Table.grid(padding=(0, 2))
    facts.add_row("next token", Text(likely))
    facts.add_row("residual", f"|Jx + b - f(x)| / |f(x)| = {explanation.residual:.1e}, {measured}")
    facts.add_row("settings", f"freeze rule {explanation.rule}, {explanation.dtype}")
    console.print(facts)
    console.print()
    console.print(_contributions(explanation, console.width))
    if explanation.experts:
        console.print()
        console.print(_experts(explanation, console.width))
    if explanation.triplets:
        console.print()
        console.print(_spectrum(explanation))
    if explanation.ranks:
        console.print()
        console.print(_ranks(explanation))


def _contributions(explanation: Explanation, width: int) -> Table:
    title = Text(f"Contributions to {explanation.subject} ({explanation.logit:.4f})")
    table = Table(title=title, title_justify="left")
    table.add_column("token")
    table.add_column("contribution", justify="right")
    table.add_column("")
    parts = list(zip(map(left_to_right, explanation.names), explanation.contributions, strict=True))
    parts = [*parts[: explanation.position + 1], ("b, the biases", explanation.bias)]
    longest = max(abs(value) for _, value in parts) or 1.0
    # All bars are drawn to one scale, which fits: clipped ones would look alike.
    room = width - BORDERS - max(cell_len(token) for token, _ in parts) - len("contribution")
    columns = min(BAR, room) if room > 1 else 0
    for token, value in parts:
        table.add_row(Text(token), f"{value:+.4f}", bar(value, longest, columns))
    table.add_section()
    total = sum(explanation.contributions) + explanation.bias
    explained = "the logit" if explanation.over is None else "the difference"
    table.add_row("sum", f"{total:+.4f}", f"= {explained}; relative error {explanation.defect:.0e}")
    return table


def bar(value: float, longest: float, columns: int = BAR) -> Text:
    """A bar of a length in proportion to the value; one of a negative value is drawn in another sign and colour."""
    sign, style = ("█", "green") if value > 0 else ("░", "red")
    return Text(sign * round(columns * abs(value) / longest), style=style)


def _experts(explanation: Explanation, width: int) -> Table:
    layers = explanation.experts
    pairs = [(layer.layer, expert) for layer in layers for expert in layer.chosen]
    largest = sorted(pairs, key=lambda pair: -abs(pair[1].contribution))[:EXPERTS]
    title = f"Experts after the last token, the {len(largest)} largest of {len(pairs)} direct contributions"
    table = Table(title=title, title_justify="left")
    for column in ("layer", "expert", "weight", "contribution"):
        table.add_column(column, justify="right")
    table.add_column("")
    longest = max(abs(expert.contribution) for _, expert in pairs) or 1.0
    columns = min(BAR, max(0, width - EXPERT_COLUMNS))
    for layer, expert in largest:
        value = expert.contribution
        table.add_row(
            str(layer), str(expert.index), f"{expert.weight:.3f}", f"{value:+.4f}", bar(value, longest, columns)
        )
    total = sum(expert.contribution for _, expert in pairs)
    others = sum(layer.others for layer in layers)
    listed = sum(expert.contribution for _, expert in largest)
    table.add_section()
    if len(largest) < len(pairs):
        table.add_row("", "", "", f"{total - listed:+.4f}", "all other experts that were chosen")
    table.add_row("", "", "", f"{others:+.4f}", "shared experts and biases")
    table.add_row("", "", "sum", f"{total + others:+.4f}", f"= the MLPs of {len(layers)} layers")
    return table


def _spectrum(explanation: Explanation) -> Table:
    table = Table(
        title=f"What J reads and writes: its {len(explanation.triplets)} largest singular values σ",
        title_justify="left",
        caption=SPECTRUM_CAPTION,
        caption_justify="left",
    )
    table.add_column("σ", justify="right")
    table.add_column("left vector u promotes")
    table.add_column("and demotes", style="dim")
    table.add_column("right vector v reads")
    for triplet in explanation.triplets:
        reads = "\n".join(
            f"{left_to_right(visible(token))} {share:.0%}: {_words(near)}"
            for token, share, near in triplet.reads
            if share >= 0.01
        )
        table.add_row(
            f"{triplet.value:.2f}", Text(_words(triplet.promotes)), Text(_words(triplet.demotes)), Text(reads)
        )
    return table


def _ranks(explanation: Explanation) -> Table:
    grid = Table.grid(padding=(0, 2))
    if ranks := explanation.ranks:
        stable, effective = f"stable {ranks.stable:.2f} (Σσ² / σ₁²)", f"effective {ranks.effective:.1f}"
        grid.add_row("rank of J ", f"{stable}, {effective} (exp entropy of σ / Σσ)")
    if ranks := explanation.ranks_without_first:
        grid.add_row("", f"without the first token: stable {ranks.stable:.2f}, effective {ranks.effective:.1f}")
    return grid


def _words(words: list[str]) -> str:
    return " ".join(left_to_right(token_names([word])[0]) for word in words)
