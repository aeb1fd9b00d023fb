"""Results as HTML for a notebook: what is known of a result, its numbers, and its arrays as tables in colour."""

from html import escape
from typing import Any

import numpy as np

from jaxlin.common.printable import printable
from jaxlin.common.token_names import joined
from jaxlin.results import tables
from jaxlin.results.provenance import TOKEN_SETTINGS

MAX_ROWS, MAX_COLUMNS = 40, 24
"""The rows and columns of a table that are shown; `to_pandas` has all."""

PLUS, MINUS = "127,178,229", "237,163,107"
"""The colours of positive and negative numbers, in red, green and blue; behind text of any colour."""

STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.4em 0"


def page(result: Any) -> str:
    """The HTML of a result."""
    numbers = ", ".join(f"{words(name)} <b>{number(value)}</b>" for name, value in tables.scalars(result).items())
    maps = [heat(result, axes, name, array) for axes, arrays in tables.groups(result).items() if len(axes) == 2
             for name, array in arrays.items() if array.dtype.kind == "f"]  # fmt: skip
    flat = [rows(result, tables.columns(result, axes, arrays)) for axes, arrays in tables.groups(result).items()
            if len(axes) != 2 or all(array.dtype.kind != "f" for array in arrays.values())]  # fmt: skip
    return heading(result) + (f"<p>{numbers}</p>" if numbers else "") + "".join(flat + maps)


def heading(result: Any) -> str:
    """The class of a result, what it is about, and the prompt."""
    provenance = result.provenance
    name = escape(type(result).__name__)
    if provenance is None:
        return f"<p><b>{name}</b></p>"
    rule = None if provenance.rule is None else f"rule {provenance.rule}"
    about = [each for each in (provenance.model, provenance.dtype, rule) if each]
    about += [f"{words(key)} {_setting(provenance, key, value)}" for key, value in provenance.settings.items()]
    text = "" if provenance.tokens is None else f"<br>{span(printable(joined(provenance.tokens)))}"
    return f"<p><b>{name}</b> {escape(' · '.join(map(str, about)))}{text}</p>"


def _setting(provenance: Any, key: str, value: Any) -> str:
    """A setting in words: those of token ids are the tokens."""
    if key not in TOKEN_SETTINGS:
        return str(value)
    ids = value if isinstance(value, list) else [value]
    return ", ".join(provenance.word(each) if isinstance(each, int) else str(each) for each in ids)


def heat(result: Any, axes: tuple[str, ...], name: str, array: np.ndarray) -> str:
    """An array of two axes as a table, its numbers on colours."""
    height, width = array.shape
    corner = array[:MAX_ROWS, :MAX_COLUMNS]
    row_names, column_names = (result._labels(axis, size) for axis, size in zip(axes, array.shape, strict=True))
    largest = float(np.nanmax(np.abs(array), initial=0.0))
    head = "".join(f"<th>{span(each)}</th>" for each in column_names[:MAX_COLUMNS])
    body = "".join(
        f"<tr><th>{span(label)}</th>{''.join(cell(float(value), largest) for value in row)}</tr>"
        for label, row in zip(row_names, corner, strict=False)
    )
    corner = escape(f"{axes[0]} \\ {axes[1]}")
    return table(words(name), f"<tr><th>{corner}</th>{head}</tr>{body}", more(height, width))


def rows(result: Any, columns: tables.Table) -> str:
    """Columns as a table; a position is shown by the name of its token."""
    names = [name for name in columns if name != "token"]
    length = len(next(iter(columns.values()), ()))
    largest = {
        name: float(np.nanmax(np.abs(column), initial=0.0))
        for name, column in columns.items()
        if isinstance(column, np.ndarray) and column.dtype.kind == "f"
    }
    token = result.token_names
    lines = []
    for index in range(min(length, MAX_ROWS)):
        cells = []
        for name in names:
            value = columns[name][index]
            if name in largest:
                cells.append(cell(float(value), largest[name]))
            elif name == "position" and token is not None and int(value) < len(token):
                cells.append(f"<th>{span(token[int(value)])}</th>")
            else:
                cells.append(f"<td>{span('' if value is None else str(value))}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    titles = ["token" if name == "position" and token is not None else words(name) for name in names]
    head = "".join(f"<th>{title}</th>" for title in titles)
    return table("", f"<tr>{head}</tr>{''.join(lines)}", more(length, 0))


def word_grid(words: Any, strength: np.ndarray, rows: list[str], columns: list[str]) -> str:
    """A grid with the first of the words of each cell on a colour, and all of them where the pointer rests."""
    first = np.asarray(strength)[..., 0]
    low, high = float(np.min(first)), float(np.max(first))

    def word(cell_words: list[str], numbers: Any, value: Any) -> str:
        listed = ", ".join(f"{each} {score:.2f}" for each, score in zip(cell_words, numbers, strict=True))
        share = float(value - low) / ((high - low) or 1.0)
        title = escape(printable(listed), quote=True)
        return f'<td title="{title}" style="background:rgba({PLUS},{share:.2f})">{span(cell_words[0])}</td>'

    head = "".join(f"<th>{span(each)}</th>" for each in columns[:MAX_COLUMNS])
    lines = []
    for label, line, scores, values in list(zip(rows, words, np.asarray(strength), first, strict=True))[:MAX_ROWS]:
        cells = (word(*each) for each in zip(line[:MAX_COLUMNS], scores, values, strict=False))
        lines.append(f"<tr><th>{label}</th>{''.join(cells)}</tr>")
    body = "".join(lines)
    return table("", f"<tr><th>layer</th>{head}</tr>{body}", more(len(rows), len(columns)))


def word_lists(columns: dict[str, Any]) -> str:
    """Lists of words, one row a direction; those of nested lists are one row each."""

    def lists(words: Any) -> list[list[str]]:
        if not words or isinstance(words[0], str):
            return [words]
        return [row for each in words for row in lists(each)]

    flat = {name: lists(words) for name, words in columns.items()}
    length = max(map(len, flat.values()))
    lines = [[span("  ".join(words[index])) for words in flat.values()] for index in range(min(length, MAX_ROWS))]
    body = "".join(
        f"<tr><th>{index}</th>{''.join(f'<td>{each}</td>' for each in line)}</tr>" for index, line in enumerate(lines)
    )
    head = "".join(f"<th>{name}</th>" for name in flat)
    return table("", f"<tr><th></th>{head}</tr>{body}", more(length, 0))


def table(caption: str, body: str, note: str) -> str:
    """A table with a caption, and a note below it."""
    title = f'<caption style="text-align:left">{caption}</caption>' if caption else ""
    return f'<table style="{STYLE}">{title}{body}</table>{note}'


def more(height: int, width: int) -> str:
    """What is left out of a table."""
    limits = ((height, MAX_ROWS, "rows"), (width, MAX_COLUMNS, "columns"))
    left_out = [f"{count - limit} more {what}" for count, limit, what in limits if count > limit]
    return f"<p>{' and '.join(left_out)}; to_pandas() has all.</p>" if left_out else ""


def cell(value: float, largest: float, sign: str = "") -> str:
    """A number on a colour, which is the stronger the larger it is; with its sign if `sign` is ``"+"``."""
    if not np.isfinite(value):
        return "<td>–</td>"
    share = abs(value) / largest if largest else 0.0
    colour = PLUS if value > 0 else MINUS
    return f'<td style="text-align:right;background:rgba({colour},{share:.2f})">{number(value, sign)}</td>'


def number(value: Any, sign: str = "") -> str:
    """A number in few digits; anything else as text."""
    if isinstance(value, float):
        small = value and not 1e-3 <= abs(value) < 1e5
        return f"{value:{sign}.1e}" if small else f"{value:{sign}.4f}"
    return escape(str(value))


def span(text: str) -> str:
    """Text of a model or a user, in its own direction."""
    return f'<bdi style="white-space:pre">{escape(printable(text))}</bdi>'


def words(name: str) -> str:
    """The name of a field in words."""
    return escape(name.replace("_", " "))
