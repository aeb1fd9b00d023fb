"""Real weights: SmolLM2-135M-Instruct, from its GGUF file."""

from pathlib import Path

import jax
import numpy as np

import jaxlin

PROMPT = "The bridge out of Marin is the"
TOP = {" only": 9.3584, " most": 9.3205, " largest": 8.1577, " one": 8.0129, " perfect": 7.992}
"""transformers' five largest logits, float32, eager attention."""


def test_float32(smollm2_gguf: Path) -> None:
    model, tokenizer = jaxlin.load(smollm2_gguf, linearize=True)
    x = model.embed(tokenizer.encode(PROMPT))
    lmap = jaxlin.local_map(model, x)
    logits = np.asarray(model.unembed(lmap.output))
    best = np.argsort(-logits)[:5]
    assert [tokenizer.token(int(i)) for i in best] == list(TOP)
    np.testing.assert_allclose(logits[best], list(TOP.values()), atol=2e-4)
    jacobian = lmap.jacobian()
    assert lmap.residual_of(jacobian) <= 2e-6
    assert lmap.residual <= 2e-6
    golden = jaxlin.attribute(model, x, tokenizer.to_single_token(" Golden"))
    assert golden.defect <= 1e-5
    assert golden.bias == 0
    plain, _ = jaxlin.load(smollm2_gguf)
    f = jax.jit(lambda model, x: model(x)[-1])
    np.testing.assert_array_equal(f(plain, x), f(model, x))
    np.testing.assert_array_equal(lmap.output, f(plain, x))


def test_float64(smollm2_gguf: Path, x64: None) -> None:
    model, tokenizer = jaxlin.load(smollm2_gguf, dtype="float64")
    lmap = jaxlin.local_map(model, model.embed(tokenizer.encode(PROMPT)))
    assert lmap.residual_of(lmap.jacobian()) <= 1e-13


def test_greedy_continuation(smollm2_gguf: Path) -> None:
    """The first tokens that transformers continues with."""
    model, tokenizer = jaxlin.load(smollm2_gguf)
    ids, expected = tokenizer.encode(PROMPT), [805, 582, 338, 416]
    f = jax.jit(lambda model, x: model(x))
    for token in expected:
        # One shape for all lengths: later tokens are not seen.
        padded = ids + [0] * (12 - len(ids))
        logits = model.unembed(f(model, model.embed(padded))[len(ids) - 1])
        assert int(np.argmax(logits)) == token
        ids.append(token)


def test_another_rule(smollm2_gguf: Path, x64: None) -> None:
    """In float64: their maps are larger than the output they reconstruct, and float32 rounds by more."""
    model, tokenizer = jaxlin.load(smollm2_gguf, dtype="float64")
    lmap = jaxlin.local_map(model, model.embed(tokenizer.encode(PROMPT)), rule="up")
    assert lmap.residual <= 1e-13
