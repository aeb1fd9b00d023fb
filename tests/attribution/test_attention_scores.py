"""Attention scores: tables that sum to those of transformers, each entry what autograd says of its queries and keys."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracle
import pytest
import tiny
import torch
from circuit_oracle import MODULES, CircuitOracle

import jaxlin
from jaxlin.attribution.circuits import score_readers, score_tables, token_blocks
from jaxlin.common.errors import JaxlinError
from jaxlin.steering import zero_ablation

QUERY, KEY, HEAD = 11, 9, 1

KINDS = {
    "gpt2": 3,
    "gemma4_text": 3,
    "qwen2, window": 3,
    "qwen3_5_text, interval": 3,
    "phi, qk_layernorm": 3,
    "ministral3": 3,
    "llama4_text, top 2": 3,
    "mistral4": 2,
    "deepseek_v3, biases": 2,
    "olmo, clip_qkv": 3,
    "gpt_oss, clipped": 2,
    "gemma4_text, per layer": 4,
    "gemma3n_text": 3,
}
"""Variants with other kinds of scores than those of `MODULES` have, and a layer of each."""


def check_against_pattern(scores: jaxlin.AttentionScores, model: Any, place: int) -> None:
    """Centred over keys, a score is the logarithm of what transformers' softmax makes of it.

    Args:
        scores: centred scores.
        model: the model of transformers, in true float64.
        place: that of the layer among those whose patterns it returns.
    """
    with torch.no_grad():
        patterns = model(input_ids=torch.tensor([tiny.IDS]), output_attentions=True, use_cache=False).attentions
    row = patterns[place][0, HEAD, QUERY].numpy()
    logs = np.log(row[row > 0])
    np.testing.assert_allclose(scores.probability, row[KEY], rtol=1e-10)
    np.testing.assert_allclose(scores.score - scores.baseline, np.log(row[KEY]) - logs.mean(), rtol=0, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", KINDS)
def test_tables_sum_to_the_scores_of_transformers(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Of every kind of attention."""
    folder, layer = checkpoint(name), KINDS[name]
    model, _ = jaxlin.load(folder, dtype="float64")
    scores = jaxlin.attention_scores(model, model.embed(tiny.IDS), layer, HEAD, QUERY, KEY)
    assert scores.defect <= 1e-12
    reference = oracle.load(folder, torch.float64)
    with oracle.lifted(reference):
        check_against_pattern(scores, reference, layer // 2 if "qwen3_5" in name else layer)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MODULES)
def test_entries_are_those_of_autograd(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Each pair of components and of tokens, from PyTorch's queries and keys with frozen norms; a softcap's ratio."""
    layer = 2
    folder = checkpoint(name)
    model, _ = jaxlin.load(folder, dtype="float64")
    x = model.embed(tiny.IDS)
    centred, scores = (
        jaxlin.attention_scores(model, x, layer, HEAD, QUERY, KEY, centred=centred) for centred in (True, False)
    )
    assert max(centred.defect, scores.defect) <= 1e-12
    reference = oracle.load(folder, torch.float64)
    with oracle.lifted(reference):
        check_against_pattern(centred, reference, layer)
    with oracle.lifted(reference), oracle.frozen(reference, "gate"):
        torch_model = CircuitOracle(reference, MODULES[name])
        writes = np.stack([each.detach().numpy() for each in torch_model.writes()])
        vectors = torch_model.scored(layer, QUERY, HEAD, KEY)
    names = ["embed"]
    for earlier in range(layer):
        names += [*(f"a{earlier}.h{head}" for head in range(torch_model.heads)), f"m{earlier}"]
    by_component = [np.einsum("ctd,ktd->ck", writes[: len(names)], each[0].numpy()) for each in vectors]
    by_token = [
        np.concatenate([np.einsum("td,ktd->tk", x, each[1].numpy()), each[2].detach().numpy()[None]])
        for each in vectors
    ]
    expected = by_component[0] @ by_component[1].T, by_token[0] @ by_token[1].T
    config = reference.config
    factor = getattr(config, "query_pre_attn_scalar", vectors[0][0].shape[0]) ** -0.5
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        z = factor * expected[1].sum()
        factor *= cap * np.tanh(z / cap) / z
    rows = [scores.components.index(each) for each in names]
    for found, table in zip((scores.by_component[np.ix_(rows, rows)], scores.by_token), expected, strict=True):
        np.testing.assert_allclose(found, factor * table, rtol=0, atol=1e-10 * np.abs(table).max())


@pytest.mark.usefixtures("x64")
def test_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mixture with biases, a few tokens at a time."""
    variant = tiny.VARIANTS["olmoe, clip_qkv"]
    variant = replace(variant, options={**variant.options, "num_hidden_layers": 2})
    folder = tiny.build(variant, tmp_path)
    model, _ = jaxlin.load(folder, dtype="float64")
    x = model.embed(tiny.IDS)
    at_once = jaxlin.attention_scores(model, x, 1, HEAD, QUERY, KEY)
    assert at_once.defect <= 1e-12
    reference = oracle.load(folder, torch.float64)
    with oracle.lifted(reference):
        check_against_pattern(at_once, reference, 1)
    monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 2**15)
    score_tables.score_numbers.clear_cache()
    in_blocks = jaxlin.attention_scores(model, x, 1, HEAD, QUERY, KEY)
    assert in_blocks.components == at_once.components
    for table in ("by_component", "by_token"):
        np.testing.assert_allclose(getattr(in_blocks, table), getattr(at_once, table), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("module", "mode"), [(score_readers, "Detach"), (score_tables, "Replay")])
def test_a_wrong_factor_shows(
    module: Any, mode: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the norm before attention 1 % too large, where the layer reads the stream or in the layers below."""
    base = getattr(module, mode)

    class Wrong(base):
        def freeze(self, name: str, compute: Callable[[], Any]) -> Any:
            factor = super().freeze(name, compute)
            return factor * 1.01 if name == "input_layernorm.inv_rms" else factor

    monkeypatch.setattr(module, mode, Wrong)
    score_tables.score_numbers.clear_cache()
    model, _ = jaxlin.load(checkpoint("qwen2, window"), dtype="float64")
    assert jaxlin.attention_scores(model, model.embed(tiny.IDS), 2, HEAD, QUERY, KEY).defect > 1e-4
    score_tables.score_numbers.clear_cache()


def test_of_the_small_model() -> None:
    """In float32; differences, the largest pairs, the mean of centred tables, and what the query does not see."""
    model, tokenizer = jaxlin.load()
    x = model.embed(tokenizer.encode("Mary gave the ball to John because Mary"))
    last, keys = x.shape[0] - 1, range(x.shape[0])
    layer = model.config.num_hidden_layers - 1
    every = [jaxlin.attention_scores(model, x, layer, 0, -1, key) for key in keys]
    assert max(scores.defect for scores in every) <= 1e-5
    np.testing.assert_allclose(sum(scores.probability for scores in every), 1, rtol=1e-6)
    scale = max(np.abs(scores.by_component).max() for scores in every)
    for table in ("by_component", "by_token"):
        np.testing.assert_allclose(sum(getattr(each, table) for each in every), 0, atol=1e-5 * scale)

    why = every[1].minus(every[3])
    assert (why.key, why.against) == (1, (0, last, 3))
    assert why.defect <= 1e-5
    raw = jaxlin.attention_scores(model, x, layer, 0, -1, 1, centred=False)
    assert raw.baseline == 0
    assert not raw.by_token[:, 2:last].any()
    np.testing.assert_allclose(raw.score - every[1].baseline, every[1].by_component.sum(), atol=1e-5 * scale)
    first, second = why.top(2)
    assert abs(first.effect) >= abs(second.effect) > 0
    i, j = (why.components.index(each) for each in (first.query, first.key))
    assert why.by_component[i, j] == first.effect
    pair = why.top(1, by="token")[0]
    assert {pair.query, pair.key} <= set(why.sources)


def test_bad_input(checkpoint: Callable[[str], Path]) -> None:
    """Each is refused in one sentence that says what was expected."""
    model, _ = jaxlin.load(checkpoint("qwen2, window"))
    x = model.embed(tiny.IDS)
    edited = jaxlin.with_edits(model, [zero_ablation(("heads", 1), units=0)])
    scores = jaxlin.attention_scores(model, x, 3, 0, 5, 4, tokens=False)
    of = jaxlin.attention_scores
    for message, call in {
        r"a layer, in 0..3 \(or from -4\); found 4": lambda: of(model, x, 4, 0, 5, 4),
        r"a head of layer 1, in 0..3 \(or from -4\); found -5": lambda: of(model, x, 1, -5, 5, 4),
        "a position as the key, in 0..19": lambda: of(model, x, 1, 0, 5, 20),
        "position 5 sees in layer 1, in 0..5; found 6": lambda: of(model, x, 1, 0, 5, 6),
        "position 19 sees in layer 3, in 14..19; found 13": lambda: of(model, x, 3, 0, -1, 13),
        "Attention scores: expected numbers": lambda: jax.jit(lambda x: of(model, x, 1, 0, 5, 4).score)(x),
        "expected a model without edits": lambda: of(edited, x, 1, 0, 5, 4),
        "of one query and key each": lambda: scores.minus(scores).minus(scores),
        "of one layer": lambda: scores.minus(scores.replaced(layer=2)),
        "expected a positive number of them; found 0": lambda: scores.top(0),
        "because of tokens=False": lambda: scores.top(by="token"),
    }.items():
        with pytest.raises(JaxlinError, match=message):
            call()
    hybrid, _ = jaxlin.load(checkpoint("qwen3_5_text, interval"))
    with pytest.raises(JaxlinError, match=r"one of \[1, 3\]; found layer 0, a gated delta rule"):
        of(hybrid, hybrid.embed(tiny.IDS), 0, 0, 5, 4)
