"""The notebooks of docs/notebooks/ run, their own asserts hold, and what is stored in them is what they print."""

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import assert_same_text, resolved, script

notebooks = script("notebooks")
PATHS = notebooks.paths()
HUB = 'jaxlin.load("meta-llama/Llama-3.2-1B")'
MAX_PICTURE, MAX_TABLE = 60_000, 60_000
"""The bytes that a stored picture and a stored table may take."""


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    """`python docs/scripts/notebooks.py` stores the outputs anew."""
    notebook = notebooks.read(path)
    for cell, outputs in zip(code_cells(notebook), notebooks.execute(notebook), strict=True):
        assert_same_outputs(outputs, cell["outputs"])


def assert_same_outputs(ours: list[dict[str, Any]], stored: list[dict[str, Any]]) -> None:
    """Outputs of the same kinds; printed numbers but for their last digits, and tables of the same cells."""
    assert [kinds(output) for output in ours] == [kinds(output) for output in stored]
    for output, other in zip(ours, stored, strict=True):
        if output["output_type"] == "stream":
            assert_same_text(notebooks.text(output["text"]), notebooks.text(other["text"]))
        elif "text/html" in output["data"]:
            here, there = (notebooks.text(each["data"]["text/html"]) for each in (output, other))
            assert here.count("<td") == there.count("<td")


def kinds(output: dict[str, Any]) -> list[str]:
    """The media types of an output."""
    return sorted(output.get("data", {"stdout": ""}))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    """Few cells, small outputs, one line to change for another model, and public names alone."""
    notebook = notebooks.read(path)
    first = notebooks.text(notebook["cells"][0]["source"])
    code = [notebooks.text(cell["source"]) for cell in code_cells(notebook)]
    assert 8 <= len(notebook["cells"]) <= 14
    assert "pip install" in first
    assert HUB in first
    assert "".join(code).count("jaxlin.load(") == 2  # the line, and the other model in its comment
    assert f"model, tokenizer = jaxlin.load()  # or {HUB}" in code[0]
    for cell, source in zip(code_cells(notebook), code, strict=True):
        assert "assert " in source or cell is code_cells(notebook)[0]
        for name in dotted_names(source):
            package, _, last = name.rpartition(".")
            assert isinstance(resolved(name), ModuleType) or last in resolved(package).__all__, name
        for output in cell["outputs"]:
            data = output.get("data", {})
            assert len(notebooks.text(data.get("image/png", ""))) * 3 / 4 <= MAX_PICTURE
            assert len(notebooks.text(data.get("text/html", "")).encode()) <= MAX_TABLE


def dotted_names(source: str) -> set[str]:
    """The names of jaxlin in a cell, as ``jaxlin.lens.fit``."""
    names = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return {name for name in names if name.startswith("jaxlin.") and name.replace(".", "").isidentifier()}


def test_a_cell_is_shown_as_a_kernel_shows_it() -> None:
    """Printed text, the last value unless a semicolon ends its line, and figures; an error in a cell is raised."""
    cells = ["import jaxlin\nprint(1)\n2", "3;", "jaxlin.plots.axes_or_new(None).set_title('a<b', loc='left');"]
    notebook = {"cells": [{"cell_type": "code", "source": source} for source in cells], "metadata": {}}
    ran = notebooks.execute(notebook)
    assert [[kinds(output) for output in outputs] for outputs in ran] == [
        [["stdout"], ["text/plain"]], [], [["image/png", "text/plain"]],
    ]  # fmt: skip
    for cell, outputs in zip(notebook["cells"], ran, strict=True):
        cell["outputs"] = outputs
    page = notebooks.page({"cells": [{"cell_type": "markdown", "source": "# T"}, *notebook["cells"]]}, "name")
    assert page.startswith("# T\n\nThis page is a notebook: [download it](name.ipynb).\n\n```python\nimport jaxlin")
    assert '<img alt="a&lt;b" src="data:image/png;base64,' in page
    with pytest.raises(AssertionError, match="wrong"):
        notebooks.execute({"cells": [{"cell_type": "code", "source": "assert False, 'wrong'"}]})
