"""Run the notebooks of docs/notebooks/ and store what their cells print and show; turn them into pages of the site.

    python docs/scripts/notebooks.py              # all of them
    python docs/scripts/notebooks.py 3_lenses     # one

A notebook is run in this process, as a kernel would run it, so that neither Jupyter nor a kernel is needed: the cells
share one namespace; the value of a last expression without a semicolon is shown, as HTML where it has any; figures of
matplotlib become PNG. `hooks.py` writes the pages with `page`; tests/test_notebooks.py runs `execute`.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
DOTS_PER_INCH = 85


def paths() -> list[Path]:
    """The notebooks, in their order."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    """A notebook as the JSON of its file."""
    return json.loads(path.read_text())


def text(lines: str | list[str]) -> str:
    """A text of a notebook, which may be stored as a list of lines."""
    return lines if isinstance(lines, str) else "".join(lines)


def execute(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell, in the format of notebooks; an error in a cell is raised."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    pyplot.close("all")  # a figure that is open already is no output of the first cell
    namespace: dict[str, Any] = {"__name__": "__main__"}
    code = [text(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    try:
        return [_run(source, number, namespace) for number, source in enumerate(code, 1)]
    finally:
        pyplot.close("all")


def _run(source: str, number: int, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the cell with this number."""
    module, value = ast.parse(source, f"cell {number}"), None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        last = module.body[-1]
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(module.body[:-1], []), f"cell {number}", "exec"), namespace)
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
        else:
            exec(compile(module, f"cell {number}", "exec"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(True)})
    if value is not None and not source.rstrip().endswith(";"):
        data = {"text/plain": repr(value).splitlines(True)}
        if hasattr(value, "_repr_html_"):
            data = {"text/html": value._repr_html_().splitlines(True), **data}
        outputs.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    return outputs + [_picture(figure) for figure in _figures()]


def _figures() -> list[Any]:
    """The open figures, which are closed here."""
    from matplotlib import pyplot

    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    pyplot.close("all")
    return figures


def _picture(figure: Any) -> dict[str, Any]:
    """A figure as PNG, with its titles as its text."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", metadata={"Software": None})
    titles = [title for ax in figure.axes for place in ("left", "center") if (title := ax.get_title(loc=place))]
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": ["; ".join(titles)]}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def page(notebook: dict[str, Any], name: str) -> str:
    """A notebook as a page in Markdown, with the outputs that are stored in it."""
    parts = []
    for cell in notebook["cells"]:
        source = text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *map(_shown, cell["outputs"])]
    link = f"This page is a notebook: [download it]({name}.ipynb)."
    return "\n\n".join([parts[0], link, *parts[1:]]) + "\n"


def _shown(output: dict[str, Any]) -> str:
    """An output of a cell in Markdown."""
    if output["output_type"] == "stream":
        return f"```text\n{text(output['text']).rstrip()}\n```"
    data = {kind: text(content) for kind, content in output["data"].items()}
    if "image/png" in data:
        picture = f"data:image/png;base64,{data['image/png'].strip()}"
        return f'<div class="output"><img alt="{escape(data["text/plain"])}" src="{picture}"></div>'
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>'
    return f"```text\n{data['text/plain']}\n```"


def main() -> None:
    """Run notebooks, and write their outputs into their files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="the names of notebooks, such as 3_lenses; all unless given")
    names = parser.parse_args().names
    for path in [FOLDER / f"{name}.ipynb" for name in names] or paths():
        notebook = read(path)
        outputs = execute(notebook)
        code = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        for number, (cell, shown) in enumerate(zip(code, outputs, strict=True), 1):
            cell.update(outputs=shown, execution_count=number)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
