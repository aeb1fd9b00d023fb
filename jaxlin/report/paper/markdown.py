"""Tables and the index, in Markdown."""

import re
from collections.abc import Sequence
from typing import Any

from jaxlin.common.printable import printable
from jaxlin.common.token_names import visible


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def row(tokens: Sequence[str]) -> str:
    """Tokens as the content of a cell."""
    return " ".join(escaped(visible(token)) for token in tokens)


def escaped(text: str) -> str:
    """Text with its signs escaped, so that none of it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", printable(text, keep=""))


def page(title: str, caption: str, body: str) -> str:
    """The page of a table, with its caption."""
    return f"# {title}\n\n{escaped(caption)}\n\n{body}"


def index(settings: dict[str, Any], tokens: Sequence[str], parts: Sequence[tuple[str, str, str, bool]]) -> str:
    """The index of a folder; of each part it takes the name, title, caption and whether it is a figure."""
    listed = ", ".join(f"{name} {escaped(str(settings[name]))}" for name in ("dtype", "rule", "seed", "fingerprint"))
    lines = [
        f"# The paper's figures for {escaped(str(settings['model']))}\n",
        f"Prompt: {row(tokens)}\n",
        f"Settings: {listed}. The figures are those of arXiv 2505.24293, for this model. Each is drawn from its JSON "
        "file alone, which has all of its numbers.\n",
    ]
    for name, title, caption, drawn in parts:
        lines.append(f"## {title}\n")
        if drawn:
            lines.append(f"![{title}]({name}.png)\n")
        files = [f"{name}.svg"] if drawn else [f"{name}.md"]
        links = ", ".join(f"[{file}]({file})" for file in (*files, f"{name}.json"))
        lines.append(f"{escaped(caption)} ({links})\n")
    return "\n".join(lines)
