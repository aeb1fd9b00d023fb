"""The residual from a few rows: its interval, its price, and what a single direction sees."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from random_llama import IDS, build

import jaxlin
from jaxlin.common import progress
from jaxlin.common.errors import JaxlinError
from jaxlin.common.operations import NUMBER, Cost, cost_of
from jaxlin.linearize.frozen import record
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.products import rmatvec
from jaxlin.linearize.residuals import check_request, default_directions, interval_factors, recording_cost, row_cost
from jaxlin.loading.shapes import shapes_of

SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
MIXTURE: dict[str, Any] = {
    **SMOLLM2,
    "model_type": "qwen3_moe",
    "num_hidden_layers": 4,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 512,
}


@pytest.fixture(scope="module")
def wrong() -> tuple[LocalMap, float]:
    """A map whose bias is off by 1 %, and its residual on all rows."""
    model = build()
    lmap = jaxlin.local_map(model, model.embed(IDS))
    wrong = replace(lmap, bias=1.01 * lmap.bias)
    return wrong, wrong.residual_of(wrong.jacobian())


@pytest.mark.parametrize(("directions", "confidence"), [(1, 0.95), (4, 0.95), (4, 0.6)])
def test_the_interval_holds_the_residual_as_often_as_it_says(
    directions: int, confidence: float, wrong: tuple[LocalMap, float]
) -> None:
    lmap, exactly = wrong
    ask = functools.partial(lmap.estimate_residual, directions, confidence=confidence)
    estimates = [ask(seed=seed) for seed in range(400)]
    held = sum(one.lower <= exactly <= one.upper for one in estimates)
    # At the confidence that it claims, a count beyond these limits has a probability of 1e-4.
    least, most = scipy.stats.binom(len(estimates), confidence).ppf([5e-5, 1 - 5e-5])
    assert least <= held <= most, held
    # The tails are as likely as each other.
    above = sum(one.lower > exactly for one in estimates)
    assert above <= scipy.stats.binom(len(estimates), (1 - confidence) / 2).ppf(1 - 5e-5)
    mean = np.mean([one.value**2 for one in estimates]) / exactly**2
    assert abs(mean - 1) <= 4 * np.sqrt(2 / (directions * len(estimates)))


def test_the_interval_is_that_of_chi_squared() -> None:
    for k, confidence in ((1, 0.95), (4, 0.95), (32, 0.95), (7, 0.5)):
        high, low = scipy.stats.chi2(k).ppf([0.5 + confidence / 2, 0.5 - confidence / 2])
        np.testing.assert_allclose(interval_factors(k, confidence), np.sqrt([k / high, k / low]), rtol=1e-9)
    # The figures of the docstring.
    np.testing.assert_allclose(interval_factors(1), (0.446, 31.9), rtol=2e-3)
    np.testing.assert_allclose(interval_factors(4), (0.599, 2.87), rtol=2e-3)
    np.testing.assert_allclose(interval_factors(32), (0.804, 1.323), rtol=2e-3)


def test_a_single_direction_sees_a_small_defect() -> None:
    """The bound of the docstring on the chance that a defect `ratio` times the bar gives a value below the bar."""
    for directions in (1, 2, 8):
        for ratio in (3.0, 1e2, 1e-2 / 3e-6, 1e-2 / 1e-13):
            missed = scipy.stats.chi2(directions).cdf(directions / ratio**2)
            assert missed <= (np.sqrt(np.e) / ratio) ** directions
            if directions == 1:
                np.testing.assert_allclose(missed, np.sqrt(2 / np.pi) / ratio, rtol=0.02)
    np.testing.assert_allclose(np.sqrt(2 / np.pi) * 3e-6 / 1e-2, 2.4e-4, rtol=0.01)
    np.testing.assert_allclose(np.sqrt(2 / np.pi) * 1e-13 / 1e-2, 8e-12, rtol=0.01)


@functools.cache
def shapes(name: str, tokens: int) -> LocalMap:
    """The map of a model of realistic proportions, as shapes."""
    one = {**SMOLLM2, "num_hidden_layers": 1}
    config = {"smollm2": SMOLLM2, "gpt2": GPT2, "mixture": MIXTURE, "one block": one}[name]
    model = shapes_of(config, None, "float32", "gate", ())
    x = jax.eval_shape(type(model).embed, model, jax.ShapeDtypeStruct((tokens,), np.int32))
    return jax.eval_shape(jaxlin.local_map, model, x)


def compiled_operations(function: Any, *arguments: Any) -> float:
    """The operations of a program as XLA counts them, a loop once."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("name", "tokens"), [("smollm2", 128), ("smollm2", 1200), ("gpt2", 128), ("mixture", 512)])
def test_the_residual_costs_no_more_than_the_recording(name: str, tokens: int) -> None:
    """Where the weights are read for many tokens, that is a matter of the products alone."""
    lmap = shapes(name, tokens)
    k, row, budget = default_directions(lmap), row_cost(lmap), recording_cost(lmap)
    assert k == (2 if name == "mixture" else 1)
    assert k * row.products <= budget.products
    assert k * row.total <= budget.total


@pytest.mark.parametrize("tokens", [512, 1200])
def test_the_compiler_counts_the_same(tokens: int) -> None:
    """In a model of one block, where XLA, which counts a loop once, counts all."""
    lmap = shapes("one block", tokens)
    k = default_directions(lmap)
    u, x = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((k, lmap.shape[0]), lmap.x.shape))
    rows = compiled_operations(functools.partial(rmatvec, fold=False), lmap, u)
    recorded = compiled_operations(record, lmap.model, x)
    assert rows <= recorded
    if tokens <= 1024:  # beyond, attention is computed in blocks, which are a loop
        assert 0.9 < k * row_cost(lmap).products / rows <= 1
        assert 0.9 < recording_cost(lmap).products / recorded <= 1


def test_short_prompts_have_more_directions() -> None:
    """Reading the weights is most of their cost, and rows share it."""
    few = [default_directions(shapes("smollm2", tokens)) for tokens in (3, 8, 64, 2000)]
    assert few == [4, 2, 1, 1]
    for tokens, k in zip((3, 8), few, strict=False):
        row, budget = row_cost(shapes("smollm2", tokens)), recording_cost(shapes("smollm2", tokens))
        assert k * row.products + row.transfers <= budget.total < (k + 1) * row.products + row.transfers
    model = build()
    assert default_directions(jaxlin.local_map(model, model.embed(IDS))) == 32


def test_the_cost_is_that_of_the_products() -> None:
    """A product of matrices, one within a loop within another function, and the dearest of branches."""
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    one = Cost(2 * 3 * 5 * 7, NUMBER * (15 + 35 + 21))
    assert cost_of(jax.make_jaxpr(jnp.matmul)(a, b)) == one

    def loop(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda total, _: (total + jax.jit(jnp.matmul)(a, b).sum(), None), 0.0, length=4)[0]

    assert cost_of(jax.make_jaxpr(loop)(a, b)) == Cost(4 * one.products, 4 * one.transfers)
    branches = jax.make_jaxpr(lambda a, b: jax.lax.cond(a[0, 0] > 0, jnp.matmul, lambda a, b: a[:, :1] + b[:1], a, b))
    assert cost_of(branches(a, b)) == one
    compiled = jax.jit(jnp.matmul).lower(a, b).compile().cost_analysis()
    assert compiled["flops"] == one.products


def test_more_directions_are_taken_in_blocks_with_a_bar(
    wrong: tuple[LocalMap, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks give what all directions together give, and the bar counts directions."""
    lmap, _ = wrong
    together = lmap.estimate_residual(7, seed=3)
    monkeypatch.setattr("jaxlin.linearize.residuals.default_block", lambda rows, tokens, size: 3)
    counts: list[int] = []
    monkeypatch.setattr(progress._Bar, "update", lambda bar, n: counts.append(n))
    blocks = lmap.estimate_residual(7, seed=3)
    assert (blocks.directions, counts) == (7, [3, 3, 1])
    np.testing.assert_allclose(blocks.value, together.value, rtol=1e-3)
    np.testing.assert_allclose(blocks.upper, together.upper, rtol=1e-3)


def test_rounding_is_that_of_the_rows_and_not_of_their_sum() -> None:
    model, _ = jaxlin.load()
    x = model.embed([(7919 * i) % 2000 for i in range(120)])
    lmap = jaxlin.local_map(model, x)
    u = jax.random.normal(jax.random.key(0), (1, lmap.shape[0]))
    row, wide_u = np.asarray(lmap.T @ u, np.float64), np.asarray(u, np.float64)
    defect = np.sum(row[0] * np.asarray(x)) + wide_u @ (np.asarray(lmap.bias, np.float64) - np.asarray(lmap.output))
    exactly = abs(defect[0]) / np.linalg.norm(np.asarray(lmap.output, np.float64))
    np.testing.assert_allclose(lmap.estimate_residual(1).value, exactly, rtol=1e-6)


def test_in_words(wrong: tuple[LocalMap, float]) -> None:
    lmap, _ = wrong
    estimate = lmap.estimate_residual()
    assert lmap.residual == estimate.value
    assert estimate is lmap.estimate_residual()
    words = f"measured in 32 random directions: {estimate.lower:.1e} to {estimate.upper:.1e} with 95 % confidence"
    assert str(estimate) == f"{estimate.value:.1e}, {words}"
    assert "in 1 random direction: " in str(lmap.estimate_residual(1))
    assert "with 99.9 % confidence" in str(lmap.estimate_residual(1, confidence=0.999))


def test_under_transforms(wrong: tuple[LocalMap, float]) -> None:
    lmap, _ = wrong
    inside = jax.jit(lambda lmap: lmap.estimate_residual(4))(lmap)
    np.testing.assert_allclose(inside.upper, lmap.estimate_residual(4).upper, rtol=1e-3)


def test_a_map_of_the_norm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows have no products."""
    model = build()
    lmap = jaxlin.local_map(model, model.embed(IDS), source=("resid_post", model.config.num_hidden_layers - 1))
    assert row_cost(lmap).products == 0
    monkeypatch.setattr("jaxlin.linearize.residuals.UNNOTICED", 0)
    assert default_directions(lmap) == 32


def test_what_is_refused(wrong: tuple[LocalMap, float]) -> None:
    lmap, _ = wrong
    for directions in (0, 1.5, True, "all"):
        with pytest.raises(JaxlinError, match="Directions: expected an integer of at least 1; found"):
            check_request(directions, 0.95, 0)
    for confidence in (0, 1.0, 95, None):
        with pytest.raises(JaxlinError, match="Confidence: expected a number between 0 and 1"):
            check_request(None, confidence, 0)
    with pytest.raises(JaxlinError, match="Seed: expected an integer"):
        check_request(None, 0.95, 0.5)
    with pytest.raises(JaxlinError, match="found 0"):
        lmap.estimate_residual(0)
