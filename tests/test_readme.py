"""What the README shows is what happens: its Python runs, its comments hold, and its command prints what it prints."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PROMPT, jaxlin_command

from jaxlin.loading import families

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the Python of the README has defined when all of it has run, one block after another."""
    namespace: dict[str, Any] = {}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), namespace)
    return namespace


def test_the_map(names: dict[str, Any]) -> None:
    x, dense, lmap = names["x"], np.asarray(names["J"], np.float64), names["lmap"]
    output = names["f"](names["model"], x)
    assert dense.shape == (lmap.shape[0], *x.shape)
    np.testing.assert_allclose(np.einsum("dts,ts->d", dense, x), output, atol=1e-4)
    np.testing.assert_allclose(lmap.jacobian(progress=False), dense, atol=1e-4)
    np.testing.assert_allclose(names["y"], output, atol=1e-4)
    np.testing.assert_allclose(names["w"], np.einsum("dts,d->ts", dense, names["y"]), atol=1e-3)
    assert names["logits"].shape == (names["model"].config.vocab_size,)
    assert lmap.residual <= 3e-6
    u, s, v = names["triplets"]
    assert (u.shape, s.shape, v.shape) == ((x.shape[1], 8), (8,), (8, *x.shape))


def test_the_attribution(names: dict[str, Any]) -> None:
    attribution, logits = names["attribution"], names["logits"]
    difference = float(logits[names["most"]] - logits[names["only"]])
    np.testing.assert_allclose(attribution.tokens.sum() + attribution.bias, difference, atol=1e-4)
    parts = attribution.embed + attribution.attn.sum() + attribution.mlp.sum() + attribution.final_bias
    np.testing.assert_allclose(parts, difference, atol=1e-4)
    np.testing.assert_allclose(attribution.heads.sum(axis=1), attribution.attn, atol=1e-4)


def test_the_models() -> None:
    """Every `model_type` and GGUF architecture that loads stands in the table, and no other."""
    table = README.split("## Models")[1].split("\n\n")[1].splitlines()[2:]
    for column, attribute in ((2, "types"), (3, "gguf")):
        shown = {name for line in table for name in re.findall(r"`([\w-]+)`", line.split("|")[column])}
        assert shown == {name for family in families() for name in getattr(family, attribute)}


def test_the_citation() -> None:
    """The BibTeX says what CITATION.cff says."""
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text()
    entries = next(block for kind, block in BLOCKS if kind == "bibtex")
    for pattern in (r"^title: \"(.*)\"", r"^version: (.*)", r"^    title: (.*)", r"value: arXiv:(.*)"):
        match = re.search(pattern, citation, re.MULTILINE)
        assert match is not None
        assert match[1] in entries


def test_the_links() -> None:
    """Every file that it points to is there."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (Path(__file__).parents[1] / target).exists(), target


def test_the_command() -> None:
    """The first output of the README, its words and, but for their last digits, its numbers."""
    shown = next(block for kind, block in BLOCKS if not kind and block.startswith("<|bos|>"))
    printed = jaxlin_command("explain", PROMPT, COLUMNS="100")
    assert printed.returncode == 0, printed.stderr

    def words(text: str) -> list[str]:
        return NUMBER.sub("_", re.sub("[█░]", "", text)).split()

    def numbers(text: str) -> list[float]:
        # Not those of rounding, nor whole percents.
        return [float(number) for number in NUMBER.findall(text) if "." in number and "e" not in number]

    assert f'jaxlin explain "{PROMPT}"\n' in README
    assert words(printed.stdout) == words(shown)
    np.testing.assert_allclose(numbers(printed.stdout), numbers(shown), rtol=1e-3, atol=2e-3)
