"""The page of an `Explanation`: one file with its style, script and data, which requests nothing else."""

import base64
import hashlib
import html
import json
import tempfile
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import write_atomically
from jaxlin.common.printable import finite
from jaxlin.common.token_names import token_names, visible
from jaxlin.report.explanation import Explanation

HEIGHT = 720
"""Height of the page in a notebook, in pixels."""


class ReportError(JaxlinError):
    """A page or a plot cannot be written to the path."""


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
    style, script, template = (
        resources.files("jaxlin.report").joinpath(file).read_text("utf-8")
        for file in ("style.css", "script.js", "page.html")
    )
    parts = {
        "title": html.escape(f"{explanation.subject} after {explanation.prompt[-60:]}"),
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


def frame(explanation: Explanation) -> str:
    """The page for a notebook: an inline frame that is sandboxed, so that it cannot reach the notebook."""
    document = html.escape(page(explanation), quote=True)
    return (
        f'<iframe title="jaxlin" sandbox="allow-scripts" srcdoc="{document}" width="100%" height="{HEIGHT}" '
        'style="border:0"></iframe>'
    )


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


def write(explanation: Explanation, path: Path, name: str | None = None) -> None:
    """Write the page to `path`, atomically.

    Raises:
        ReportError: it cannot be written there.
    """
    check_writable(path)
    text = page(explanation, name)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"), ReportError)


def contents(explanation: Explanation, name: str | None) -> dict[str, Any]:
    """The data that the script draws: the explanation with its tokens made visible, the model's name, the versions."""
    data = explanation.values()
    data["tokens"] = explanation.names
    data["before"], data["after"] = map(_plain, (explanation.prompt, explanation.rest))
    data["target"] = _name(explanation.target)
    data["over"] = None if explanation.over is None else _name(explanation.over)
    data["next_tokens"] = [(_name(token), probability) for token, probability in explanation.next_tokens]
    for triplet in data["triplets"]:
        triplet["promotes"], triplet["demotes"] = (
            [_name(word) for word in triplet[pole]] for pole in ("promotes", "demotes")
        )
        triplet["reads"] = [
            (visible(token), share, [_name(word) for word in near]) for token, share, near in triplet["reads"]
        ]
    for readings in (data.get("detail") or {}).get("readings", []):
        for reading in readings:
            for pole in ("near", "opposite"):
                reading[pole] = [_name(word) for word in reading[pole]]
    data["name"] = name
    data["versions"] = {package: version(package) for package in ("jaxlin", "jax", "flax", "numpy")}
    return data


def _name(token: str) -> str:
    """The name of a token that stands alone."""
    return token_names([token])[0]


def _plain(text: str) -> str:
    """`text` without control characters and direction marks, which would change how the text around it is shown."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def as_json(data: Any) -> str:
    r"""JSON for the inside of a script element: without `<`, `>` and `&`, and in ASCII alone.

    Numbers that are not finite become null, as JSON has none.
    """
    text = json.dumps(finite(data, digits=7), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
