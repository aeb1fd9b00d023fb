"""What the API pages make of docstrings: their tables, which are drawn as text, become tables of Markdown."""

import re
from typing import Any

import griffe

BORDER = re.compile(r"=+(?: +=+)+")


class Tables(griffe.Extension):
    """Rewrite the tables of every docstring that is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring and BORDER.search(obj.docstring.value):
            obj.docstring.value = with_tables(obj.docstring.value)


def with_tables(text: str) -> str:
    """`text` with each table between three borders of ``===`` written as one of Markdown."""
    lines, out = text.split("\n"), list[str]()
    while lines:
        line = lines.pop(0)
        if not BORDER.fullmatch(line.strip()):
            out.append(line)
            continue
        starts = [match.start() for match in re.finditer("=+", line)]
        borders = [index for index, other in enumerate(lines) if BORDER.fullmatch(other.strip())][:2]
        head, body = lines[: borders[0]], lines[borders[0] + 1 : borders[1]]
        lines = lines[borders[1] + 1 :]
        rows = [_joined(head, starts), ["---"] * len(starts), *_rows(body, starts)]
        out.extend(f"| {' | '.join(row)} |" for row in rows)
    return "\n".join(out)


def _rows(lines: list[str], starts: list[int]) -> list[list[str]]:
    """Lines go on with the row before where their first cell is empty, or where code of that row is not yet closed."""
    groups: list[list[str]] = []
    for line in lines:
        open_code = groups and "".join(_cells(part, starts)[0] for part in groups[-1]).count("`") % 2
        if groups and (open_code or not _cells(line, starts)[0]):
            groups[-1].append(line)
        else:
            groups.append([line])
    return [_joined(group, starts) for group in groups]


def _joined(lines: list[str], starts: list[int]) -> list[str]:
    """The cells of a row that may have several lines."""
    columns = zip(*(_cells(line, starts) for line in lines), strict=True)
    return [" ".join(filter(None, column)).replace("|", "\\|") for column in columns]


def _cells(line: str, starts: list[int]) -> list[str]:
    """The text of one line in each column: where gaps tell them, or else between the starts of the columns."""
    parts = re.split(r"\s{2,}", line.strip())
    if len(parts) == len(starts):
        return parts
    return [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
