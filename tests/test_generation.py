"""Generation with a cache against the model without one, against transformers, and against its own promises."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

import jaxlin
from jaxlin.decoder import PromptError
from jaxlin.generation import Sampling, SamplingError, chosen, generate, generate_all, spans

NEW = 64
STORED_OTHERWISE = ("bfloat16", "float16", "shards", "old", "yarn, ", "MHA", "MQA", "head_dim", "linear", "R1", "tied")
FAMILIES = [name for name in tiny.VARIANTS if not any(mark in name for mark in STORED_OTHERWISE)]
"""The variants that differ in more than a number or how they are stored."""

BY_LENGTH = ("dynamic", "longrope")
"""Ropes whose frequencies depend on the length of the text."""


@pytest.fixture(scope="session")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant whose context holds a prompt and 64 tokens."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            variant = tiny.VARIANTS[name]
            options = {key: dict(value) if isinstance(value, dict) else value for key, value in variant.options.items()}
            if "dynamic" not in name:  # the trained length, which it outgrows
                options.get("text_config", options)["max_position_embeddings"] = 128
            variant = dataclasses.replace(variant, options=options)
            made[name] = tiny.build(variant, tmp_path_factory.mktemp("roomy"))
        return made[name]

    return of


def uncached(model: Any, ids: list[int]) -> np.ndarray:
    """Logits of the whole text in one pass."""
    return np.asarray(model.unembed(jax.jit(lambda model, x: model(x))(model, model.embed(ids))))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, roomy: Callable[[str], Path], x64: None) -> None:
    folder, prompt = roomy(name), tiny.ids_of(tiny.VARIANTS[name])
    model, tokenizer = jaxlin.load(folder, dtype="float64")
    found = generate(model, tokenizer, prompt, NEW, stop=(), logits=True)
    assert found.prompt == prompt
    assert len(found.tokens) == NEW
    assert found.logits is not None
    ids, last = prompt + found.tokens, len(prompt) - 1
    if any(kind in name for kind in BY_LENGTH):
        # What is right at one length is not at another: each token has its own pass.
        rows = [oracle.logits(folder, ids[:end], torch.float64)[-1] for end in range(last + 1, len(ids), 7)]
        np.testing.assert_allclose(found.logits[::7], rows, atol=1e-10)
        np.testing.assert_array_equal(found.tokens[::7], np.argmax(rows, axis=-1))
        assert len(list(spans(model, last + 1, len(ids)))) > (name != "phi3, longrope, long")
    else:
        rows = uncached(model, ids)[last:-1]
        np.testing.assert_allclose(found.logits, rows, atol=1e-12 * np.abs(rows).max())
        np.testing.assert_array_equal(found.tokens, np.argmax(rows, axis=-1))
