"""What users of other libraries reported, tried here, each with its right value.

Others of these stand where their subject is: batches of unequal prompts (TransformerLens issues 1005 and 1609) in
tests/activations/test_batches.py, the doubled BOS of a chat template (neuronpedia 123) in tests/tokenizer/test_chat.py,
and the stream of gemma2 as a sum in tests/activations/test_record.py. So do some of what new users of jaxlin met: a
page without layers in tests/report/test_report.py, an editable install in tests/test_package.py, and the memory of a
long prompt in tests/loading/test_plan.py.
"""

import html
import importlib
import inspect
import io
import json
import math
import pkgutil
import pydoc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import random_llama
import tiny
import torch
from result_samples import samples
from rich.cells import cell_len
from rich.console import Console

import jaxlin
from jaxlin.common import progress
from jaxlin.common.errors import JaxlinError
from jaxlin.report import page
from jaxlin.report.commands.output import check_files
from jaxlin.report.explanation import Explanation
from jaxlin.report.paper import check_output, reproduce, reproduction
from jaxlin.report.paper.part import Part
from jaxlin.report.terminal import show


@pytest.mark.parametrize("name", ["olmo2", "phi"])
def test_the_stream_is_a_sum(name: str, tmp_path: Path, x64: None) -> None:
    """TransformerLens 1639, 980 and 1553: after norms that follow a layer, in parallel blocks, and with shared heads.

    The heads of a layer, each by its own rows of the output projection, are what attention adds, but for its bias and
    for the norm that olmo2 puts after it.
    """
    model, _ = jaxlin.load(tiny.build(tiny.VARIANTS[name], tmp_path), dtype="float64")
    recorded = jaxlin.record(model, model.embed(tiny.IDS))
    added = recorded["attn_out"] + recorded["mlp_out"]
    np.testing.assert_allclose(recorded["resid_pre"] + added, recorded["resid_post"], rtol=0, atol=1e-12)
    pattern, values = recorded["pattern"], recorded["v"]
    shared = pattern.shape[1] // values.shape[2]
    assert shared == (2 if name == "olmo2" else 1)
    mixed = np.einsum("lhts,lshk->lthk", pattern, np.repeat(values, shared, axis=2))
    np.testing.assert_allclose(recorded["heads"], mixed, rtol=0, atol=1e-12)


def test_capped_logits_of_large_embeddings(tmp_path: Path, x64: None) -> None:
    """TransformerLens 828: logits far above the cap are at it, and their contributions still add up to them."""
    model, _ = jaxlin.load(tiny.build(tiny.VARIANTS["gemma2"], tmp_path), dtype="float64")
    cap = model.config.final_logit_softcapping
    x = model.embed(tiny.IDS)
    raw = np.asarray(model(x)[-1] @ model.embed_tokens.weight[...].astype("float64").T)
    np.testing.assert_allclose(model.unembed(model(x)[-1]), cap * np.tanh(raw / cap), rtol=1e-12)

    large = jax.tree.map(lambda a: a, model)
    large.embed_tokens.weight = type(large.embed_tokens.weight)(1000 * model.embed_tokens.weight[...])
    x = large.embed(tiny.IDS)
    logits = np.asarray(large.unembed(large(x)[-1]))
    assert np.abs(logits).max() == pytest.approx(cap, rel=1e-12)
    assert np.isfinite(logits).all()
    token = int(np.argmax(logits))
    result = jaxlin.attribute(large, x, token)
    assert result.value == pytest.approx(cap, rel=1e-12)
    assert abs(result.tokens.sum() + result.bias - result.value) <= 1e-11 * np.abs(result.tokens).sum()


def test_six_thousand_tokens() -> None:
    """circuit-tracer 92: contributions at a length at which the patterns of all heads would take half a gigabyte."""
    model = random_llama.build(1, biases=False)
    tokens = 6000
    x = jax.random.normal(jax.random.key(1), (tokens, model.config.hidden_size))
    result = jaxlin.attribute(model, x, 3)
    assert result.tokens.shape == (tokens,)
    assert result.defect <= 3e-6


def test_text_that_is_no_word_in_a_page() -> None:
    """Captum 1360 and ecco 51: a picture of several tokens and the signs of markup are read as they were written."""
    model, tokenizer = jaxlin.load()
    text = "I 😂 a<b<c </script>"
    explanation = jaxlin.explain(model, tokenizer, text, spectrum="none")
    assert explanation.prompt.endswith(text)
    written = page(explanation)
    assert written.count("</script>") == len(re.findall(r"<script\b", written))
    assert "a<b<c" not in written
    data = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', written, re.DOTALL)
    assert data is not None
    assert "😂" in html.unescape(data[1]) or "😂" in json.dumps(json.loads(data[1]), ensure_ascii=False)


def test_olmo3_around_its_window_and_its_trained_length(tmp_path: Path, x64: None) -> None:
    """40 tokens are within a window of 64 and a trained length of 100; 100 tokens are at it; 200 are past both."""
    full = {**tiny.OLMO3["full_attention"], "original_max_position_embeddings": 100, "factor": 4.0}
    frequencies = {**tiny.OLMO3, "full_attention": full}
    options = {**tiny.VARIANTS["olmo3"].options, "sliding_window": 64, "rope_parameters": frequencies}
    folder = tiny.build(tiny.Variant("Olmo3Config", options | {"max_position_embeddings": 400}), tmp_path)
    model, _ = jaxlin.load(folder, dtype="float64")
    ids = (tiny.IDS * 10)[:200]
    for tokens in (40, 100, 200):
        expected = oracle.logits(folder, ids[:tokens], torch.float64)
        logits = model.unembed(model(model.embed(ids[:tokens])))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)
        residual = jaxlin.local_map(model, model.embed(ids[:tokens])).residual
        assert residual <= 1e-13
    assert math.isfinite(float(jnp.max(logits)))


@pytest.mark.parametrize("name", ["activations", "attribution", "causal", "lens", "linearize", "spectrum", "steering"])
def test_help_lists_all_that_a_package_offers(name: str) -> None:
    """Once `help(jaxlin.causal)` left out half of it, and `jaxlin.head_ablation` was a module that cannot be called."""
    package = importlib.import_module(f"jaxlin.{name}")
    modules = {module for _, module, _ in pkgutil.iter_modules(package.__path__)}
    for module in modules:
        importlib.import_module(f"jaxlin.{name}.{module}")
    text = pydoc.render_doc(package, renderer=pydoc.plaintext)  # pyright: ignore[reportArgumentType]
    for each in package.__all__:
        value = getattr(package, each)
        assert not inspect.ismodule(value), each
        assert each not in modules, each
        if callable(value):
            assert (inspect.getdoc(value) or "").partition("\n")[0] in text
            assert re.search(rf"^ +(class )?{each}\b", text, re.MULTILINE), each


@pytest.mark.parametrize("columns", [50, 80])
def test_bars_of_a_narrow_terminal_are_to_scale(columns: int) -> None:
    """At 50 columns +8.03 and +4.59 had the same bar, which was clipped."""
    drawn = samples()["Explanation"]
    assert isinstance(drawn, Explanation)
    contributions = [8.03, 4.59, -4.0, *[0.0] * (len(drawn.tokens) - 3)]
    out = io.StringIO()
    show(replace(drawn, contributions=contributions, bias=0.0), Console(file=out, width=columns, highlight=False))
    lines = [
        next(line for line in out.getvalue().splitlines() if f"{value:+.4f} │" in line)
        for value in (*contributions[:3],)
    ]
    longest, second, negative = (len(re.findall("[█░]", line)) for line in lines)
    assert "░" in lines[2]
    assert longest > 0
    assert abs(second - longest * 4.59 / 8.03) <= 0.5
    assert abs(negative - longest * 4 / 8.03) <= 0.5
    assert max(map(cell_len, lines)) <= columns


def test_no_command_makes_the_parents_of_its_output(tmp_path: Path) -> None:
    """`paper --out` made them and `--html` refused to."""
    place = tmp_path / "nowhere" / "output"
    for check in (lambda: check_output(place), lambda: check_files(place, None)):
        with pytest.raises(JaxlinError, match=r"expected a folder .*nowhere"):
            check()
    assert not place.parent.exists()


def test_the_paper_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`jaxlin paper` takes minutes, in which nothing was printed."""
    bars: list[tuple[bool, dict[str, Any]]] = []

    def bar(items: Any, *, show: bool, **options: Any) -> Any:
        bars.append((show, options))
        return progress.progress_bar(items, show=show, **options)

    part = Part("figure_1b", "Title", lambda subject: {}, lambda data: "Caption.")
    monkeypatch.setattr(reproduction, "progress_bar", bar)
    monkeypatch.setattr(reproduction, "PARTS", (part,))
    reproduce(*jaxlin.load(), "The cat", out=tmp_path / "out", phrases=["The dog"])
    assert bars == [(True, {"desc": "paper", "unit": "part"})]
