"""Several prompts in one call: each result is that of the prompt by itself, and few programs are compiled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import random_llama
import tiny

import jaxlin
from jaxlin.activations.batches import padded_length
from jaxlin.attribution.components import contributions
from jaxlin.common.errors import JaxlinError
from jaxlin.lens import read, read_batch
from jaxlin.nn.sites import SiteError
from jaxlin.steering import add

KINDS = ("gpt2", "llama4_text, interleaved", "qwen3_5_moe_text", "gemma4_text, per layer", "gpt_oss, clipped")
"""Position embeddings; chunks of attention; a delta rule and experts; per-layer inputs and shared values; windows."""


def close(ours: Any, expected: Any) -> None:
    """Equal to 1e-5 of the largest number."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.nanmax(np.abs(b)))
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", KINDS)
def test_padding_is_not_seen(name: str, checkpoint: Callable[[str], Path]) -> None:
    """At every site of every kind of layer, and where the prompt is shorter than a window or chunk, or longer."""
    model, _ = jaxlin.load(checkpoint(name))
    prompts = [tiny.IDS[:3], tiny.IDS]
    for ids, batched in zip(prompts, jaxlin.record_batch(model, prompts, progress=False), strict=True):
        alone = jaxlin.record(model, model.embed(ids))
        assert batched.sites == alone.sites
        for site in alone.sites:
            close(batched[site], alone[site])


def test_a_new_length_compiles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a program nor the lookup of embeddings, nor what pads them."""
    model = random_llama.build()

    def compiled(prompts: list[list[int]]) -> list[str]:
        caplog.clear()
        with jax.log_compiles():
            jaxlin.attribute_batch(model, prompts, 3, progress=False)
        return [each for record in caplog.records if (each := record.getMessage()).startswith("Finished XLA")]

    assert compiled([random_llama.IDS[:3]])
    assert not compiled([random_llama.IDS[:4], random_llama.IDS[:7]])


def test_every_analysis() -> None:
    model = random_llama.build()
    prompts: list[Any] = [random_llama.IDS[:4], model.embed(random_llama.IDS), list(range(20))]
    programs: Any = contributions
    before = programs._cache_size()
    parts = jaxlin.attribute_batch(model, prompts, [3, (4, 5), 6], sources=True, progress=False)
    assert programs._cache_size() == before + 2  # a token id, and a pair of them
    readings = read_batch(model, prompts, k=3, tokens=(2, 7), progress=False)
    ends = read_batch(model, prompts, k=3, positions=-1, progress=False)
    maps = jaxlin.local_map_batch(model, prompts, progress=False)
    for index, target in enumerate((3, (4, 5), 6)):
        x = prompts[index] if index == 1 else model.embed(prompts[index])
        close(parts[index], jaxlin.attribute(model, x, target, sources=True))
        alone = read(model, x, k=3, tokens=(2, 7))
        assert readings[index].positions == alone.positions
        for name in ("ids", "logits", "ranks"):
            close(getattr(readings[index], name), getattr(alone, name))
        close(ends[index].logits[:, 0], alone.logits[:, -1])
        lmap = jaxlin.local_map(model, x)
        assert maps[index].shape == lmap.shape
        close((maps[index].output, maps[index].bias, maps[index].x), (lmap.output, lmap.bias, lmap.x))
        if index == 1:
            close(maps[index].jacobian(), lmap.jacobian())
            assert maps[index].residual <= 3e-6
    table = parts.table()
    assert table["tokens"] == [4, 7, 20]
    assert table["value"] == [each.value for each in parts]
    assert {"prompt", "bias", "embed", "defect"} <= set(table)
    assert padded_length(model, 40) == padded_length(model, 64) == 64  # and no more than the context
    single = jaxlin.record_batch(model, prompts, (("pattern", 1), "embed"), progress=False)[0]
    assert single["pattern", 1].shape == (4, 4, 4)
    assert single["embed"].shape == (4, 32)


def test_texts_know_their_tokens() -> None:
    model, tokenizer = jaxlin.load()
    texts = ["The cat", "The bridge out of the town"]
    parts = jaxlin.attribute_batch(model, texts, " most", tokenizer=tokenizer, progress=False)
    assert parts.table()["prompt"] == texts
    for text, each in zip(texts, parts, strict=True):
        assert each.provenance is not None
        assert list(each.provenance.ids or ()) == tokenizer.encode(text)


def test_what_cannot_be_traced_says_so() -> None:
    model = random_llama.build()
    x, (_, tokenizer) = model.embed(random_llama.IDS), jaxlin.load()
    calls: tuple[Any, ...] = (
        lambda x: jaxlin.lens.exact(model, x),
        lambda x: jaxlin.causal.head_ablation(model, x, 3),
        lambda x: jaxlin.causal.activation_patching(model, x, x, 3),
        lambda x: jaxlin.record_batch(model, [x]),
        lambda x: jaxlin.generate(model, tokenizer, [1], edits=[add("embed", x[0], scale="absolute")]),
    )
    for call in calls:
        with pytest.raises(JaxlinError, match="values that are traced"):
            jax.jit(call)(x)
        with pytest.raises(JaxlinError, match="call it outside of them"):
            jax.vmap(call)(x[None])


def test_bad_input() -> None:
    model = random_llama.build()
    for prompts, message in (([], "one prompt or more"), ("The", "found 'The'"), (["The"], "Pass tokenizer=")):
        with pytest.raises(JaxlinError, match=message):
            jaxlin.record_batch(model, prompts)
    with pytest.raises(JaxlinError, match="one for each of 2 prompts, or one for all; found 1"):
        jaxlin.attribute_batch(model, [[1], [2]], [3])
    with pytest.raises(SiteError, match="found 1"):
        jaxlin.attribute_batch(model, [[1]], 3, position=1)
