"""What users of other libraries reported, tried here, each with its right value.

Others of these stand where their subject is: batches of unequal prompts (TransformerLens issues 1005 and 1609) in
tests/activations/test_batches.py, the doubled BOS of a chat template (neuronpedia 123) in tests/tokenizer/test_chat.py,
and the stream of gemma2 as a sum in tests/activations/test_record.py.
"""

import html
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import random_llama
import tiny
import torch

import jaxlin
from jaxlin.report import page


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
