"""What a person sees of the experts of a mixture, in a terminal and on the page."""

import io
import json
from pathlib import Path

import browser
import jax
import numpy as np
import pytest
from random_mixture import VARIANTS, mixture
from rich.console import Console

import jaxlin
from jaxlin.report import write
from jaxlin.report.terminal import show


@pytest.fixture(scope="module")
def explained() -> jaxlin.Explanation:
    """The explanation of a prompt by a mixture with many experts."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    _, tokenizer = jaxlin.load()
    model = mixture(**VARIANTS["shared"], layers=5, experts=40)
    explanation = jaxlin.explain(model, tokenizer, [3, 1, 4, 1, 5, 9], spectrum="none", with_detail=True)
    jax.config.update("jax_enable_x64", before)
    return explanation


def test_the_layers(explained: jaxlin.Explanation) -> None:
    assert explained.detail is not None
    sums = [sum(expert.contribution for expert in layer.chosen) + layer.others for layer in explained.experts]
    np.testing.assert_allclose(sums, explained.detail.mlp, atol=1e-12)
    assert [layer.layer for layer in explained.experts] == [0, 1, 2, 3, 4]
    assert max(expert.index for layer in explained.experts for expert in layer.chosen) > 3
    json.dumps(explained.to_dict())


def test_the_terminal(explained: jaxlin.Explanation) -> None:
    with io.StringIO() as shown:
        show(explained, Console(file=shown, width=100))
        text = shown.getvalue()
    lines = text[text.index("Experts after the last token, the 8 largest of 10") :].splitlines()
    chosen = [(expert, layer.layer) for layer in explained.experts for expert in layer.chosen]
    expert, layer = max(chosen, key=lambda pair: abs(pair[0].contribution))
    first = next(line for line in lines if line.startswith("│"))
    assert [cell.strip() for cell in first.split("│")[1:5]] == [
        str(layer), str(expert.index), f"{expert.weight:.3f}", f"{expert.contribution:+.4f}",
    ]  # fmt: skip
    assert explained.detail is not None
    assert f"{sum(explained.detail.mlp):+.4f} │ = the MLPs of 5 layers" in text
    plain = jaxlin.explain(*jaxlin.load(), "Once upon", spectrum="none")
    with io.StringIO() as shown:
        show(plain, Console(file=shown, width=100))
        assert "Experts" not in shown.getvalue()


def figure(text: str) -> float:
    """The number that the page shows."""
    return float(text.replace("\N{MINUS SIGN}", "-"))


def test_the_page(explained: jaxlin.Explanation, tmp_path: Path) -> None:
    write(explained, tmp_path / "page.html")
    layer, choice = 2, 1
    expert = explained.experts[layer].chosen[choice]
    with browser.browser() as running:
        page = running.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        cell = page.locator("#experts tbody tr").nth(layer).locator("td").nth(choice)
        index, value = cell.inner_text().split()
        cell.click()
        readout = page.locator("#experts-readout p").inner_text()
        sums = [
            float(text.replace("\N{MINUS SIGN}", "-")) for text in page.locator("#experts td.sum").all_inner_texts()
        ]
        assert not errors
    assert index == str(expert.index)
    assert figure(value) == pytest.approx(expert.contribution, abs=1e-3)
    assert readout.startswith(f"layer {layer}, expert {expert.index}, weight {expert.weight:.3f}")
    assert explained.detail is not None
    np.testing.assert_allclose(sums[1::2], explained.detail.mlp, atol=1e-3)
