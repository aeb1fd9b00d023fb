"""The page of an `Explanation`: one file that holds its style, its script and its data, and asks for nothing else."""

import base64
import hashlib
import html
import json
import math
import re
import tempfile
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import write_atomically
from jaxlin.report.explanation import Explanation
from jaxlin.report.terminal import subject, visible

HEIGHT = 720
"""Pixels of the page in a notebook."""


class ReportError(JaxlinError):
    """A page that cannot be written where it was asked for."""


def page(found: Explanation, name: str | None = None) -> str:
    """The page of `found` as HTML.

    The browser is told to run no script and use no style but the page's own, by their hashes, and to ask nothing of
    any network: text that were taken for markup after all would do nothing.

    Args:
        found: from `jaxlin.report.build`; with ``with_detail=True`` for layers, heads, neurons and the whole spectrum.
        name: where the model is from, as a user named it.
    """
    style, script, template = (
        resources.files("jaxlin.report").joinpath(file).read_text("utf-8")
        for file in ("style.css", "script.js", "page.html")
    )
    parts = {
        "title": html.escape(f"{subject(found)} after {prompt(found)[-60:]}"),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": as_json(contents(found, name)),
        "rows": "".join(
            f"<tr><th>{html.escape(visible(token))}</th><td>{value:+.4f}</td></tr>"
            for token, value in zip(found.tokens, found.contributions, strict=True)
        ),
    }
    # One pass, so that nothing that was put in is looked at again.
    return re.sub(r"@(\w+)@", lambda match: parts[match[1]], template)


def frame(found: Explanation) -> str:
    """The page inside a notebook: a frame whose document is given in place, and which can reach nothing around it."""
    document = html.escape(page(found), quote=True)
    return (
        f'<iframe title="jaxlin" sandbox="allow-scripts" srcdoc="{document}" width="100%" height="{HEIGHT}" '
        'style="border:0"></iframe>'
    )


def check_writable(path: Path) -> None:
    """Say so before anything is computed if `path` cannot be written.

    Raises:
        ReportError: a folder, or a file in a folder that is not there or cannot be written.
    """
    if path.is_dir():
        raise ReportError(f"{path}: expected a file to write the page to; found a folder.")
    if not path.parent.is_dir():
        raise ReportError(f"{path}: expected a folder {path.parent} to write in; found none. Make it first.")
    if path.exists() and not path.is_file():
        raise ReportError(f"{path}: expected an ordinary file to replace; found a device or a pipe.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ReportError(f"{path}: expected a folder that can be written; found {error.strerror}.") from error


def write(found: Explanation, path: Path, name: str | None = None) -> None:
    """Write the page to `path`, whole or not at all: beside it first, then renamed.

    Raises:
        ReportError: it cannot be written there.
    """
    check_writable(path)
    text = page(found, name)
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8", newline="\n"), ReportError)


def prompt(found: Explanation) -> str:
    """The prompt up to the position explained."""
    return "".join(found.tokens[: found.position + 1])


def contents(found: Explanation, name: str | None) -> dict[str, Any]:
    """What the script reads: the explanation with its tokens made visible, and where it comes from."""
    data = found.to_dict()
    data["tokens"] = [visible(token) for token in found.tokens]
    data["before"], data["after"] = map(_plain, (prompt(found), "".join(found.tokens[found.position + 1 :])))
    data["target"] = visible(found.target)
    data["over"] = None if found.over is None else visible(found.over)
    data["next_tokens"] = [(visible(token), probability) for token, probability in found.next_tokens]
    for triplet in data["triplets"]:
        triplet["promotes"], triplet["demotes"] = (
            [visible(word) for word in triplet[pole]] for pole in ("promotes", "demotes")
        )
        triplet["reads"] = [
            (visible(token), share, [visible(word) for word in near]) for token, share, near in triplet["reads"]
        ]
    for readings in (data.get("detail") or {}).get("readings", []):
        for reading in readings:
            for pole in ("near", "opposite"):
                reading[pole] = [visible(word) for word in reading[pole]]
    data["name"] = name
    data["versions"] = {package: version(package) for package in ("jaxlin", "jax", "flax", "numpy")}
    return data


def _plain(text: str) -> str:
    """`text` with nothing in it that could turn what stands around it: no control or direction marks."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def as_json(data: Any) -> str:
    r"""JSON that stands inside a script element: no `<`, `>` or `&`, and nothing outside ASCII.

    What is not finite is null: JSON has no such numbers.
    """
    text = json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float):
        return float(f"{data:.7g}") if math.isfinite(data) else None
    return data


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
