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
from kinds import WRAPPERS

import jaxlin
from jaxlin.common.errors import JaxlinError
from jaxlin.nn.prompt import PromptError
from jaxlin.steering.generation import frequency_spans, generate, generate_batch
from jaxlin.steering.samplers import Sampling, SamplingError, sample_token

NEW = 64
FAMILIES = [
    name
    for name in tiny.VARIANTS
    if name not in WRAPPERS
    and ("," not in name or any(word in name for word in ("window", "dynamic", "longrope", "clip")))
]
"""Every `model_type`, and the variants that differ from it in more than a number or how they are stored.

A wrapper has the config and the parameters of its text model: see `test_kinds`.
"""

BY_LENGTH = ("dynamic", "longrope", "phi4_multimodal")
"""Names of variants whose rotary frequencies depend on the length of the text."""


def with_room(name: str) -> tiny.Variant:
    """A variant whose context holds a prompt and 64 tokens."""
    variant = tiny.VARIANTS[name]
    options = {key: dict(value) if isinstance(value, dict) else value for key, value in variant.options.items()}
    room = NEW + max(variant.tokens, NEW)
    if "dynamic" not in name:  # the trained length, which it outgrows
        options.get("text_config", options)["max_position_embeddings"] = room
    if name == "phimoe":  # whose trained length is its limit
        options["original_max_position_embeddings"] = room
        options["rope_parameters"]["original_max_position_embeddings"] = room
    return dataclasses.replace(variant, options=options)


@pytest.fixture(scope="session")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the checkpoint of `with_room(name)`."""
    return tiny.built_once({name: with_room(name) for name in tiny.VARIANTS}, lambda: tmp_path_factory.mktemp("roomy"))


def uncached(model: Any, ids: list[int]) -> np.ndarray:
    """Logits of the whole text in one pass."""
    return np.asarray(model.unembed(jax.jit(lambda model, x: model(x))(model, model.embed(ids))))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, roomy: Callable[[str], Path], x64: None) -> None:
    folder, prompt = roomy(name), tiny.ids_of(tiny.VARIANTS[name])
    model, tokenizer = jaxlin.load(folder, dtype="float64")
    found = generate(model, tokenizer, prompt, NEW, stop_token_ids=(), return_logits=True)
    assert found.prompt == prompt
    assert len(found.tokens) == NEW
    assert found.logits is not None
    ids, last = prompt + found.tokens, len(prompt) - 1
    if any(kind in name for kind in BY_LENGTH):
        # What is right at one length is not at another: each token has its own pass.
        rows = [oracle.logits(folder, ids[:end], torch.float64)[-1] for end in range(last + 1, len(ids), 7)]
        np.testing.assert_allclose(found.logits[::7], rows, atol=1e-10)
        np.testing.assert_array_equal(found.tokens[::7], np.argmax(rows, axis=-1))
        assert len(list(frequency_spans(model, last + 1, len(ids)))) > (name != "phi3, longrope, long")
    else:
        rows = uncached(model, ids)[last:-1]
        np.testing.assert_allclose(found.logits, rows, atol=1e-12 * np.abs(rows).max())
        np.testing.assert_array_equal(found.tokens, np.argmax(rows, axis=-1))


@pytest.mark.parametrize("name", ["gemma2", "olmo, clip_qkv"])
def test_float32(name: str, roomy: Callable[[str], Path]) -> None:
    model, tokenizer = jaxlin.load(roomy(name), linearize=True)
    found = generate(model, tokenizer, tiny.IDS, NEW, stop_token_ids=(), return_logits=True)
    assert found.logits is not None
    rows = uncached(model, tiny.IDS + found.tokens)[len(tiny.IDS) - 1 : -1]
    np.testing.assert_allclose(found.logits, rows, atol=1e-5 * np.abs(rows).max())


@pytest.mark.parametrize("name", ["gemma3_text", "phi", "phi3, longrope, short"])
def test_transformers_own_generation(name: str, roomy: Callable[[str], Path], x64: None) -> None:
    folder = roomy(name)
    reference = oracle.load(folder, torch.float64)
    with oracle.precision(reference, torch.float64):
        ids = reference.generate(
            torch.tensor([tiny.IDS]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    model, tokenizer = jaxlin.load(folder, dtype="float64")
    assert generate(model, tokenizer, tiny.IDS, NEW, stop_token_ids=()).tokens == ids[0, len(tiny.IDS) :].tolist()


def test_a_list_is_its_prompts(roomy: Callable[[str], Path]) -> None:
    """Each prompt's tokens and draws are its own, whatever stands beside it."""
    model, tokenizer = jaxlin.load(roomy("phi3, longrope, short"))
    sides, neighbours = (tiny.IDS[:3], tiny.IDS[5:14]), (tiny.IDS[:17], tiny.IDS[2:])
    drawing: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9}
    for options in ({}, drawing):
        one, two = (
            generate_batch(model, tokenizer, [sides[0], other, sides[1]], 24, stop_token_ids=(), **options)
            for other in neighbours
        )
        assert [row.prompt for row in one] == [sides[0], neighbours[0], sides[1]]
        assert one[0].tokens == two[0].tokens != one[2].tokens == two[2].tokens
        assert generate(model, tokenizer, sides[0], 24, stop_token_ids=(), **options).tokens == one[0].tokens


def test_stops() -> None:
    model, tokenizer = jaxlin.load()
    prompts = ["The bridge out of Marin is the", "The cat sat on the"]
    ended, cut = generate_batch(model, tokenizer, prompts, 40, return_logits=True)
    assert ended.stopped
    assert ended.tokens[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in ended.tokens[:-1]
    assert ended.text == " most iconic sight in the town, and it's a testament to the resilience of the human spirit."
    assert ended.logits is not None
    assert ended.logits.shape == (len(ended.tokens), model.config.vocab_size)
    assert (cut.stopped, len(cut.tokens)) == (False, 40)
    assert generate(model, tokenizer, prompts[0], 40, stop_token_ids=ended.tokens[3:4]).tokens == ended.tokens[:4]
    endless = generate(model, tokenizer, prompts[0], 40, stop_token_ids=())
    assert (len(endless.tokens), endless.stopped) == (40, False)
    assert endless.tokens[: len(ended.tokens)] == ended.tokens


def test_draws() -> None:
    model, tokenizer = jaxlin.load()
    first, again, other = (
        generate(model, tokenizer, "The cat", 30, temperature=1.0, seed=seed).tokens for seed in (3, 3, 4)
    )
    assert first == again != other
    greedy = generate(model, tokenizer, "The cat", 30).tokens
    assert generate(model, tokenizer, "The cat", 30, temperature=1.0, top_k=1).tokens == greedy
    assert generate(model, tokenizer, "The cat", 30, temperature=1.0, top_p=1e-6).tokens == greedy


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0, 5, 1.0), [0.4, 0.1, 0.3, 0.15, 0.05]),
        (Sampling(0.5, 5, 1.0), [0.16, 0.01, 0.09, 0.0225, 0.0025]),
        (Sampling(1.0, 2, 1.0), [0.4, 0, 0.3, 0, 0]),
        (Sampling(1.0, 5, 0.75), [0.4, 0, 0.3, 0.15, 0]),  # the third reaches it
        (Sampling(1.0, 3, 0.8), [0.4, 0, 0.3, 0, 0]),  # of three, the first two hold 0.82
    ],
)
def test_distribution(sampling: Sampling, expected: list[float]) -> None:
    """Frequencies of 40,000 draws."""
    logits = jnp.log(jnp.asarray([0.4, 0.1, 0.3, 0.15, 0.05])) + 3
    keys = jax.random.split(jax.random.key(0), 40_000)
    drawn = jax.jit(jax.vmap(lambda key: sample_token(sampling, logits, key)))(keys)
    share = np.bincount(np.asarray(drawn), minlength=5) / len(keys)
    wanted = np.asarray(expected) / np.sum(expected)
    assert ((share > 0) == (wanted > 0)).all()
    np.testing.assert_allclose(share, wanted, atol=5 * np.sqrt(0.25 / len(keys)))


def test_one_program() -> None:
    """Prompts of about one length, temperatures and seeds share a compiled program."""
    model, tokenizer = jaxlin.load()
    lowered = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("logging.Logger.handle", lambda self, record: lowered.append(record.getMessage()))
        for prompt, seed, temperature in (([3, 4, 5], 0, 0.7), ([6] * 9, 1, 0.9)):
            generate(model, tokenizer, prompt, 20, seed=seed, temperature=temperature)
    assert sum("Compiling" in message and "_grow" in message for message in lowered) == 1


def test_errors(roomy: Callable[[str], Path]) -> None:
    model, tokenizer = jaxlin.load(roomy("llama"))
    with pytest.raises(PromptError, match=r"at most 128 tokens.*found 100 and 40.*at most 28"):
        generate(model, tokenizer, [3] * 100, 40)
    with pytest.raises(JaxlinError, match=r"prompts: expected a list.*found 'abc'"):
        generate_batch(model, tokenizer, "abc", 4)
    with pytest.raises(PromptError, match="one prompt or more; found an empty one"):
        generate_batch(model, tokenizer, [], 4)
    with pytest.raises(PromptError, match="one token id or more"):
        generate(model, tokenizer, [], 4)
    with pytest.raises(PromptError, match="found 128"):
        generate(model, tokenizer, [5, 128], 4)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"temperature": -1.0}, "Temperature.*-1"),
        ({"temperature": float("nan")}, "Temperature.*nan"),
        ({"top_k": 0}, "top_k.*found 0"),
        ({"top_p": 0.0}, "top_p.*found 0"),
        ({"top_p": 1.5}, "top_p.*found 1.5"),
        ({"max_new_tokens": 0}, "1 or more; found 0"),
    ]
    for options, words in refused:
        with pytest.raises(SamplingError, match=words):
            generate(model, tokenizer, [5], **options)
