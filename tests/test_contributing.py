"""CONTRIBUTING.md names files that exist, few enough in each recipe, and its Python runs."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = re.split(r"^### ", TEXT.split("## Recipes")[1].split("\n## ")[0], flags=re.MULTILINE)[1:]
MAX_FILES = 8


def test_every_file_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_recipe_opens_few_files() -> None:
    assert len(RECIPES) == 5
    for recipe in RECIPES:
        count = re.search(r"^Files to open: (\d+)", recipe, re.MULTILINE)
        assert count, recipe
        linked = set(re.findall(r"\]\((?!http)([^)#]+)\)", recipe))
        assert len(linked) <= int(count[1]) <= MAX_FILES


def test_its_python_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        namespace: dict[str, Any] = {"__name__": "contributing"}
        exec(compile(block, "CONTRIBUTING.md", "exec"), namespace)
        assert namespace["lmap"].residual <= 3e-6
