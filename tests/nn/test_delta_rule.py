"""The pattern of the gated delta rule against its recurrence in NumPy, and against transformers' chunks."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5

from jaxlin.nn import delta_rule
from jaxlin.nn.delta_rule import Chunked, unit_inverse

LENGTHS = (1, 3, 20, 64, 65, 130, 300)


class Inputs(NamedTuple):
    """Queries, keys, strengths, decays and values in float64; queries and keys are normed."""

    q: np.ndarray
    k: np.ndarray
    beta: np.ndarray
    log_decay: np.ndarray
    values: np.ndarray

    def pattern(self, dtype: str = "float64") -> Chunked:
        return Chunked(*(jnp.asarray(a, dtype) for a in self[:4]))


def draw(t: int, n: int = 2, h: int = 4, i: int = 8, v: int = 12, *, top: float = 2.0, shift: float = 0.0) -> Inputs:
    """Random inputs, with strengths up to `top` and decays of about ``-exp(shift)`` a token."""
    rng = np.random.default_rng(t)
    q, k = (rng.normal(size=(t, n, i)) for _ in range(2))
    q, k = (a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
    beta = top / (1 + np.exp(-2 * rng.normal(size=(t, h))))
    return Inputs(q * i**-0.5, k, beta, -np.exp(rng.normal(size=(t, h)) + shift), rng.normal(size=(t, h, v)))


def recurrence(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of the delta rule and its last state, token by token."""
    q, k, beta, log_decay, values = inputs
    q, k = (np.repeat(a, beta.shape[1] // q.shape[1], axis=1) for a in (q, k))
    state, outputs = np.zeros((beta.shape[1], q.shape[2], values.shape[2])), []
    for t in range(len(q)):
        state = state * np.exp(log_decay[t])[:, None, None]
        change = beta[t][:, None] * (values[t] - np.einsum("hiv,hi->hv", state, k[t]))
        state = state + k[t][:, :, None] * change[:, None, :]
        outputs.append(np.einsum("hiv,hi->hv", state, q[t]))
    return np.stack(outputs), state


def error(value: Any, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(value, float) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_recurrence(t: int, x64: None) -> None:
    inputs = draw(t)
    pattern, expected = inputs.pattern(), recurrence(inputs)[0]
    assert error(jax.jit(Chunked.mix)(pattern, inputs.values), expected) <= 1e-14
    dense = jax.jit(Chunked.dense)(pattern)
    assert error(dense.mix(jnp.asarray(inputs.values)), expected) <= 1e-14
    assert not np.triu(np.asarray(dense.probabilities), 1).any()


@pytest.mark.parametrize("t", [20, 130])
def test_equals_transformers(t: int, x64: None) -> None:
    inputs = draw(t, top=1.0)
    rule = inspect.unwrap(modeling_qwen3_5.torch_chunk_gated_delta_rule)
    q, k, beta, log_decay, values = (torch.tensor(a)[None] for a in inputs)
    with oracle.Lift(), torch.no_grad():
        expected, state = rule(q * q.shape[-1] ** 0.5, k, values, log_decay, beta, output_final_state=True)
    z, last = inputs.pattern().update(jnp.asarray(inputs.values), jnp.zeros(state.shape[1:], "float64"))
    assert error(z, expected[0].numpy()) <= 1e-14
    assert error(last, state[0].numpy()) <= 1e-14


@pytest.mark.parametrize(("top", "shift"), [(1.0, -3.0), (2.0, -3.0), (2.0, 0.0), (2.0, -8.0)])
def test_float32(top: float, shift: float) -> None:
    """Weak decays and strong ones, whose sum over the prompt has no digits left for the difference of two."""
    inputs = draw(400, i=64, v=64, top=top, shift=shift)
    pattern, expected = inputs.pattern("float32"), recurrence(inputs)[0]
    values = jnp.asarray(inputs.values, "float32")
    assert error(jax.jit(Chunked.mix)(pattern, values), expected) <= 2e-6
    assert error(jax.jit(Chunked.dense)(pattern).mix(values), expected) <= 2e-6


def test_strong_decay_is_finite() -> None:
    inputs = draw(70, shift=5.0)
    pattern = inputs.pattern("float32")

    def norm(pattern: Chunked) -> jax.Array:
        return jnp.sum(pattern.dense().probabilities ** 2) + jnp.sum(pattern.mix(jnp.ones((70, 4, 3))) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(norm))(pattern)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(gradient))


def test_equal_keys(x64: None) -> None:
    """All keys alike: the powers of the matrix are binomials, its inverse has entries of at most one."""
    lower = np.tril(np.ones((100, 100)), -1)
    np.testing.assert_allclose(unit_inverse(jnp.asarray(lower)), np.linalg.inv(np.eye(100) + lower), atol=1e-14)
    float32 = unit_inverse(jnp.asarray(lower, "float32"))
    np.testing.assert_allclose(float32, np.linalg.inv(np.eye(100) + lower), atol=1e-6)


def test_the_interface_of_a_pattern(x64: None) -> None:
    """Rows, the first tokens, the last queries, batches of values, and the transpose, as the dense pattern has them."""
    t, batch = 130, 5
    inputs = draw(t)
    chunked, dense = inputs.pattern(), inputs.pattern().dense()
    values = jnp.asarray(np.random.default_rng(0).normal(size=(t, batch, 4, 12)))
    z = chunked.mix(values)
    np.testing.assert_allclose(z, dense.mix(values), atol=1e-13)
    np.testing.assert_allclose(chunked.mix(values, 3), z[-3:], atol=1e-13)
    for position in (0, 63, 64, -1):
        np.testing.assert_allclose(chunked.row(position), dense.row(position), atol=1e-14)
    np.testing.assert_allclose(jax.jit(Chunked.row)(chunked, 70), dense.row(70), atol=1e-14)
    np.testing.assert_allclose(chunked.first(70).dense().probabilities, dense.first(70).probabilities, atol=1e-14)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), chunked).first(70)
    np.testing.assert_allclose(jax.tree.map(lambda a: a[1], stacked).mix(values[:70]), z[:70], atol=1e-13)
    for last in (0, 3):
        transposes = [
            jax.linear_transpose(functools.partial(pattern.mix, last=last), values)(z[-last:])[0]
            for pattern in (chunked, dense)
        ]
        np.testing.assert_allclose(*transposes, atol=1e-12)


def test_a_state_continues(x64: None) -> None:
    """A prompt in three parts, one of them a single token, and tokens that leave no trace."""
    inputs = draw(150)
    expected, last = recurrence(inputs)
    pattern, values = inputs.pattern(), jnp.asarray(inputs.values)
    state, outputs = jnp.zeros((4, 8, 12), "float64"), []
    for start, stop in ((0, 77), (77, 78), (78, 150)):
        part = jax.tree.map(lambda a, start=start, stop=stop: a[start:stop], pattern)
        z, state = part.update(values[start:stop], state)
        outputs.append(z)
    assert error(jnp.concatenate(outputs), expected) <= 1e-14
    assert error(state, last) <= 1e-14
    is_text = jnp.arange(150)[:, None] < 100
    padded = Chunked(pattern.q, pattern.k, pattern.beta * is_text, pattern.log_decay * is_text)
    _, state = padded.update(values, jnp.zeros((4, 8, 12), "float64"))
    assert error(state, recurrence(Inputs(*(a[:100] for a in inputs)))[1]) <= 1e-14


def test_the_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch, x64: None) -> None:
    inputs = draw(20)
    expected = inputs.pattern().dense().probabilities
    monkeypatch.setattr(delta_rule, "CHUNK", 7)
    np.testing.assert_allclose(inputs.pattern().dense().probabilities, expected, atol=1e-14)


def test_memory_of_a_long_prompt() -> None:
    """At 4,096 tokens the pattern, the mixing of the values and its transpose take less than 2 GiB."""
    t, n, h, i, v = 4096, 16, 32, 128, 128
    shapes = [(t, n, i), (t, n, i), (t, h), (t, h)]
    pattern = Chunked(*(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes))
    values = jax.ShapeDtypeStruct((t, h, v), "float32")

    def there_and_back(pattern: Chunked, values: jax.Array) -> Any:
        transposed = jax.linear_transpose(pattern.mix, values)
        return pattern.mix(values), transposed(values)

    analysis: Any = jax.jit(there_and_back).lower(pattern, values).compile().memory_analysis()
    used = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    assert used <= 2**30
