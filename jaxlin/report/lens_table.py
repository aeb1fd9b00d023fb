"""Lenses in a terminal: the words of each layer at one position, and the parts of an output by token and layer."""

from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import printable
from jaxlin.common.token_names import left_to_right, split_text
from jaxlin.lens import ExactLens, LensReading

CELL = 8
"""Columns of a share and its border."""

WORDS = 24
"""Columns that the words of a part take at least, where there is room for them."""

EXACT_CAPTION = (
    "Each column adds up to the output: the share of each token's stream before that layer, carried through the rest "
    "of the model as it is frozen at this prompt, along the output."
)


def show_reading(reading: LensReading, position: int, console: Console) -> None:
    """Print the words with the largest logits after each layer, at one of the positions that were read."""
    names = reading.token_names or []
    column = int(np.arange(len(reading.positions))[position])
    settings = {} if reading.provenance is None else reading.provenance.settings
    _show_prompt(reading, reading.positions[column], console)
    kind = str(settings.get("lens", "lens")).replace("_", " ")
    title = f"{kind[:1].upper()}{kind[1:]} after {_name(names, reading.positions[column])}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("layer", justify="right")
    ranked = [reading._word(token) for token in settings.get("tokens", [])]
    for word in ranked:
        table.add_column(Text(f"rank of {left_to_right(word)}"), justify="right")
    table.add_column("likeliest next words")
    room = console.width - len("layer") - sum(cell_len(f"rank of {word}") + 3 for word in ranked) - 7
    for index, layer in enumerate(reading.layers):
        shares = reading.probabilities[index, column]
        words = zip(reading.words[index][column], shares.tolist(), strict=True)
        ranks = [f"{rank + 1:,}" for rank in reading.ranks[index, column].tolist()]
        table.add_row(str(layer), *ranks, Text(_lines([f"{left_to_right(word)} {p:.1%}" for word, p in words], room)))
    console.print(table)


def show_parts(lens: ExactLens, words: Any, console: Console) -> None:
    """Print the share of each token in the output, before as many layers as there is room for."""
    shares = lens.projections
    depth, tokens = shares.shape
    names = [left_to_right(_name(lens.token_names or [], index)) for index in range(tokens)]
    position = int(np.flatnonzero(shares[-1])[-1]) if shares[-1].any() else tokens - 1
    room = console.width - max(map(cell_len, names)) - 6
    has_words = room >= WORDS + 3 * CELL
    count = max(1, min(depth, (room - WORDS * has_words) // CELL, 8))
    layers = np.unique(np.linspace(0, depth - 1, count).round().astype(int)).tolist()
    _show_prompt(lens, position, console)
    title = Text(f"Parts of the output after {names[position]}, before layer")
    caption = f"{EXACT_CAPTION} Words: what the part before layer 0 raises most." if has_words else EXACT_CAPTION
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("token")
    for layer in layers:
        table.add_column("end" if layer == depth - 1 else str(layer), justify="right")
    if has_words:
        table.add_column("words")
    for index in range(position + 1):
        values = [f"{shares[layer, index]:+.0%}" for layer in layers]
        raised = [Text(" ".join(map(left_to_right, words[0][index])))] * has_words
        table.add_row(Text(names[index]), *values, *raised)
    biases = lens.bias @ lens.output / np.sum(np.square(lens.output))
    table.add_section()
    if np.any(biases):
        table.add_row("biases", *(f"{biases[layer]:+.0%}" for layer in layers))
    totals = shares.sum(1) + biases
    table.add_row("sum", *(f"{totals[layer]:+.0%}" for layer in layers), *["error " + f"{lens.defect:.0e}"] * has_words)
    console.print(table)


def _show_prompt(result: Any, position: int, console: Console) -> None:
    """The prompt, what comes after the position dimmed."""
    tokens = (None if result.provenance is None else result.provenance.tokens) or []
    before, after = split_text(tokens, position)
    console.print(Text(printable(before), style="bold").append(printable(after), style="not bold dim"))


def _lines(entries: list[str], width: int) -> str:
    """Entries beside each other in lines of at most this width, which break between two of them."""
    lines = [""]
    for entry in entries:
        longer = f"{lines[-1]}   {entry}" if lines[-1] else entry
        if cell_len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(entry)
    return "\n".join(lines)


def _name(names: list[str], position: int) -> str:
    return names[position] if position < len(names) else f"token {position}"
