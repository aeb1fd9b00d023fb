"""The pages of docs/: their Python runs and prints what they show, and the site builds with no network."""

import contextlib
import importlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import jaxlin_command
from pages import NUMBER, assert_same_text, resolved, script

import jaxlin

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if any(k == "python" for k, _ in BLOCK.findall(path.read_text()))
)


def run(page: str) -> dict[str, Any]:
    """Run the Python of a page, one block after another, and compare what each prints with the text below it."""
    namespace: dict[str, Any] = {}
    blocks = BLOCK.findall((DOCS / page).read_text())
    for (kind, block), (next_kind, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, page, "exec"), namespace)
            assert_same_text(output.getvalue(), shown if next_kind == "text" else output.getvalue())
    return namespace


def check_attribution(names: dict[str, Any]) -> None:
    model, x, attribution = names["model"], names["x"], names["attribution"]
    logits = model.unembed(model(x)[-1])
    difference = float(logits[names["most"]] - logits[names["only"]])
    np.testing.assert_allclose(attribution.tokens.sum() + attribution.bias, difference, atol=1e-4)
    parts = attribution.embed + attribution.attn.sum() + attribution.mlp.sum() + attribution.final_bias
    np.testing.assert_allclose(parts, difference, atol=1e-4)
    np.testing.assert_allclose(attribution.heads.sum(axis=1), attribution.attn, atol=1e-4)
    assert attribution.sources[names["layer"], names["head"], names["t"]] == attribution.sources.max()
    less = names["without"].unembed(names["without"](x)[-1])
    fall = difference - float(less[names["most"]] - less[names["only"]])
    np.testing.assert_allclose(names["ablation"].effects[names["layer"], names["head"]], fall, atol=1e-4)
    sat = names["sat"]
    assert round(sat.probability, 2) == 0.62
    assert (sat.top(1, by="token")[0].query, sat.top(1, by="token")[0].key) == ("·cat₁₀", "·sat")
    before, own = np.abs(sat.by_token.sum(axis=0)[[2, 3]])
    assert before < 0.1 * own
    patched = names["patched"]
    np.testing.assert_allclose(patched.recovered[0], [0, 0, 1, 0, 0, 0], atol=1e-5)
    assert patched.rank_correlation > 0.9


def check_lenses(names: dict[str, Any]) -> None:
    model, readout, exact, lens = (names[name] for name in ("model", "readout", "exact", "lens"))
    layers, (tokens, d) = model.config.num_hidden_layers, names["x"].shape
    assert readout.ids.shape == (layers, tokens, 8)
    assert readout.ids[-1, -1, 0] == np.argmax(model.unembed(model(names["x"])[-1]))
    assert exact.parts.shape == (layers + 1, tokens, d)
    np.testing.assert_allclose(exact.parts.sum(1), np.tile(exact.output, (layers + 1, 1)), atol=1e-4)
    assert exact.words(model).positive.ids.shape == (layers + 1, tokens, 8)
    assert lens.n_prompts == 4
    assert lens.error.shape == (layers - 1,)
    assert (lens.error > 0).all()


def check_steering(names: dict[str, Any]) -> None:
    """What the map writes most is a direction that matters: without it the output is another."""
    model, x = names["model"], names["x"]
    plain = jaxlin.steering.edited(model, x, [])
    assert names["ablated"].shape == x.shape
    assert np.abs(names["ablated"] - plain).max() > 1e-2


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "attribution.md": check_attribution,
    "lenses.md": check_lenses,
    "steering.md": check_steering,
}
"""What the comments of a page claim, beside what it prints."""


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str) -> None:
    names = run(page)
    CHECKS.get(page, lambda names: None)(names)


def test_tasks_take_ten_lines() -> None:
    blocks = [block.splitlines() for _, block in BLOCK.findall((DOCS / "tasks.md").read_text())]
    assert len(blocks) >= 10
    assert max(len(list(filter(None, block))) for block in blocks) <= 10


def test_the_house_is_current() -> None:
    """`python docs/scripts/house.py` draws it anew."""
    house = script("house")
    assert house.PICTURE.read_text() == str(house.draw())


def test_the_figures_are_current(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`python docs/scripts/figures.py` draws them anew: the same shapes, numbers within a few percent."""
    figures = script("figures")
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path)])
    figures.main()
    for name in figures.FIGURES:
        drawn, committed = ((folder / f"{name}.svg").read_text() for folder in (tmp_path, figures.FOLDER))
        assert_same_drawing(drawn, committed)


def assert_same_drawing(drawn: str, committed: str) -> None:
    assert NUMBER.sub("_", drawn) == NUMBER.sub("_", committed)
    for ours, theirs in zip(NUMBER.findall(drawn), NUMBER.findall(committed), strict=True):
        assert abs(float(ours) - float(theirs)) <= 1 + 0.05 * abs(float(theirs))


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-4b-it"])
def test_the_checkpoints_are_current(name: str) -> None:
    """The row is what the memory plan says, but for what another version of the compiler takes."""
    checkpoints = script("checkpoints")
    rows = checkpoints.rows_of(checkpoints.PAGE.read_text())
    assert list(rows) == list(checkpoints.CONFIGS)
    row, shown = checkpoints.row(name), rows[name]
    assert NUMBER.sub("_", row) == NUMBER.sub("_", shown)
    ours, theirs = (np.array([float(number) for number in NUMBER.findall(line)]) for line in (row, shown))
    np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.02)


def test_the_numbers_are_current() -> None:
    """`python docs/scripts/numerics.py` writes the tables of measured figures anew."""
    numerics = script("numerics")
    assert numerics.PAGE.read_text() == numerics.written(numerics.PAGE.read_text())


@pytest.mark.parametrize("page", sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")))
def test_names_exist(page: str) -> None:
    """Every name of jaxlin that a page has is there."""
    text = (DOCS / page).read_text()
    for name in set(re.findall(r"(?<![\w./-])jaxlin(?:\.[A-Za-z_]\w*)+", text)):
        if not name.endswith(".md"):
            assert resolved(name) is not None, name


def test_the_check() -> None:
    """What `jaxlin check` prints stands in one page, and what each of its lines means in another."""
    printed = jaxlin_command("check", COLUMNS="100")
    assert printed.returncode == 0, printed.stderr
    shown = next(block for _, block in BLOCK.findall((DOCS / "numerics.md").read_text()) if "$ jaxlin check" in block)
    assert_same_text(printed.stdout, shown.partition("\n")[2])
    meanings = re.findall(r"^\| (.*?) \|", (DOCS / "check.md").read_text(), re.MULTILINE)
    for line in re.findall(r"^  pass  (.*?)  ", printed.stdout, re.MULTILINE):
        assert any(line.startswith(name) for name in meanings), line


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `.ci/run` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_asks_for_nothing(site: Path) -> None:
    """No page takes a script, style, font or picture from a network; formulas are MathML, tables are tables."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for path in pages:
        page = path.read_text()
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag) or 'rel="canonical"' in tag, (path, tag)
        assert "arithmatex" not in page, path
        assert "=====" not in page, path  # a table of a docstring that is still drawn as text
    assert "<math" in (site / "map" / "index.html").read_text()
    for path in site.rglob("*.css"):
        assert "url(http" not in path.read_text()


def test_the_api_has_every_public_name(site: Path) -> None:
    for package in jaxlin_packages():
        page = (site / "api" / package.removeprefix("jaxlin.") / "index.html").read_text()
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            if callable(getattr(module, name)):  # a list of names has no docstring, and no entry
                assert f'id="{package}.{name}"' in page, f"{package}.{name}"


def jaxlin_packages() -> list[str]:
    """The packages that have a page."""
    return [f"jaxlin.{path.stem}" for path in (DOCS / "api").glob("*.md") if path.stem not in ("index", "jaxlin")]
