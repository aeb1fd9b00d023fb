"""Generated texts in a terminal, and what an edit does to them as its strength grows."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import printable
from jaxlin.common.token_names import left_to_right
from jaxlin.steering import DoseCurve, Generation

WIDE = 72
"""Columns of a terminal from which on the numbers stand beside the text."""

CAPTION = (
    "The strength is a share of the norm of the residual stream. p: mean probability of the target as the next token. "
    "KL: divergence from the ordinary model's next tokens, in nats. Surprise: of the text to the ordinary model, in "
    "nats a token. Repeats: share of 3-grams that occurred before."
)


def show_generation(generation: Generation, prompt: str, console: Console) -> None:
    """Print the prompt, and the new text after it."""
    text = Text(printable(prompt), style="dim")
    # In a file or a pipe, a text has the lines that it has.
    console.print(text.append(printable(generation.text), style="bold not dim"), soft_wrap=not console.is_terminal)


def show_doses(strengths: Sequence[float], texts: Sequence[str], prompt: str, console: Console) -> None:
    """Print the text at each strength."""
    table = Table(title=Text(printable(prompt)), title_justify="left", title_style="bold")
    table.add_column("strength", justify="right")
    table.add_column("text")
    for strength, text in zip(strengths, texts, strict=True):
        table.add_row(f"{strength:g}", _cell(text))
    console.print(table)


def show_curve(curve: DoseCurve, prompt: str, console: Console) -> None:
    """Print the text and the measurements at each strength."""
    table = Table(title=Text(printable(prompt)), title_justify="left", title_style="bold")
    table.caption, table.caption_justify = CAPTION, "left"
    table.add_column("strength", justify="right")
    names = ("p", "KL", "surprise", "repeats")
    for name in names:
        table.add_column(Text(f"p({curve.target})" if name == "p" else name), justify="right")
    is_wide = console.width >= WIDE
    if is_wide:
        table.add_column("text", min_width=24)
    columns = (curve.strengths, curve.target_probability, curve.kl, curve.surprise, curve.repetition)
    for index, (strength, probability, kl, surprise, repetition) in enumerate(zip(*columns, strict=True)):
        numbers = (f"{strength:g}", f"{probability:.1%}", f"{kl:.2f}", f"{surprise:.2f}", f"{repetition:.0%}")
        table.add_row(*numbers, *[_cell(curve.texts[index][0])] * is_wide)
    console.print(table)
    if not is_wide:
        console.print()
        show_doses(curve.strengths.tolist(), [row[0] for row in curve.texts], prompt, console)


def _cell(text: str) -> Text:
    return Text(left_to_right(printable(text.strip())))
