"""The page of an `Explanation`: one file with its style, script and data, which requests nothing else."""

import base64
import hashlib
import html
import json
import tempfile
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import write_atomically
from jaxlin.common.printable import finite
from jaxlin.report.explanation import Explanation
from jaxlin.report.page_data import contents, plain_text

HEIGHT = 720
"""Height of the page in a notebook, in pixels."""

SCRIPTS = ("values", "figures", "heat_maps", "tokens", "layers", "heads", "lenses", "circuit", "spectrum", "main")
"""The parts of the page's script, in the order in which they are put together."""

TITLE = 60
"""Characters of the prompt in the title of the page."""


class ReportError(JaxlinError):
    """A page or a plot cannot be written to the path."""


@checked
def page(explanation: Explanation, name: str | None = None) -> str:
    """The page of an explanation, as HTML.

    Its content security policy lets the browser run no script and use no style but the page's own, which it knows by
    their hashes, and make no request: text of a prompt that was parsed as markup in spite of the escaping could do
    nothing.

    Args:
        explanation: from `explain`; with ``with_detail=True`` the page shows layers, heads, neurons and all singular
            values too.
        name: the name of the model that the user gave.
    """
    style, template = (_file(name) for name in ("style.css", "page.html"))
    parts_of_script = "\n".join(_file(f"{name}.js") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{parts_of_script}}})();\n'
    prompt = plain_text(explanation.prompt)
    end = prompt if len(prompt) <= TITLE else f"…{prompt[-TITLE:]}"
    parts = {
        "title": html.escape(f"{explanation.subject} after {end}"),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": as_json(contents(explanation, name)),
        "rows": "".join(
            f"<tr><th>{html.escape(name)}</th><td>{value:+.4f}</td></tr>"
            for name, value in zip(explanation.names, explanation.contributions, strict=True)
        ),
    }
    return Template(template).substitute(parts)  # in one pass, so that no part is itself taken for a template


@checked
def frame(explanation: Explanation) -> str:
    """The page for a notebook: an inline frame that is sandboxed, so that it cannot reach the notebook."""
    document = html.escape(page(explanation), quote=True)
    return (
        f'<iframe title="jaxlin" sandbox="allow-scripts allow-popups" srcdoc="{document}" width="100%" '
        f'height="{HEIGHT}" style="border:0"></iframe>'
    )


@checked
def check_writable(path: Path) -> None:
    """Check, before anything is computed, that a file can be written to `path`.

    Raises:
        ReportError: `path` is a folder or no ordinary file, or its folder does not exist or cannot be written.
    """
    if path.is_dir():
        raise ReportError(f"{path}: expected a file to write to; found a folder.")
    if not path.parent.is_dir():
        raise ReportError(f"{path}: expected a folder {path.parent} to write in; found none. Make it first.")
    if path.exists() and not path.is_file():
        raise ReportError(f"{path}: expected an ordinary file to replace; found a device or a pipe.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ReportError(f"{path}: expected a folder that can be written; found {error.strerror}.") from error


@checked
def write(explanation: Explanation, path: Path, name: str | None = None) -> None:
    """Write the page to `path`, atomically.

    Raises:
        ReportError: it cannot be written there.
    """
    check_writable(path)
    text = page(explanation, name)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"), ReportError)


def _file(name: str) -> str:
    return resources.files("jaxlin.report").joinpath("web", name).read_text("utf-8")


def as_json(data: Any) -> str:
    r"""JSON for the inside of a script element: without `<`, `>` and `&`, and in ASCII alone.

    Numbers that are not finite become null, as JSON has none.
    """
    text = json.dumps(finite(data, digits=7), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
