"""Every variant against transformers: logits, the map, its residual and its bias."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import margins
import numpy as np
import oracle
import pytest
import tiny
import torch

import jaxlin
from jaxlin.linearize.residuals import MAX_DIRECTIONS

DIRECTIONS = 3


def directions_of(rng: np.random.Generator) -> np.ndarray:
    """A few random directions, and zeros up to the number of rows for which the residual has compiled a program."""
    directions = np.zeros((MAX_DIRECTIONS, tiny.BASE["hidden_size"]))
    directions[:DIRECTIONS] = rng.normal(size=(DIRECTIONS, directions.shape[1]))
    return directions


@pytest.mark.parametrize("name", tiny.VARIANTS)
def test_variant(name: str, checkpoint: Callable[[str], Path], parity_row: Callable[..., None], x64: None) -> None:
    folder, ids = checkpoint(name), tiny.ids_of(tiny.VARIANTS[name])
    assert margins.router_margin(folder, ids) > margins.NOISE, "choose another seed for this variant"
    reference = oracle.logits(folder, ids, torch.float32)
    exact = oracle.logits(folder, ids, torch.float64)
    position = len(ids) - 2
    directions = directions_of(np.random.default_rng(0))
    expected_rows = oracle.frozen_rows(folder, ids, position, directions[:DIRECTIONS])

    figures = {}
    for dtype, expected in (("float32", reference), ("float64", exact)):
        model, _ = jaxlin.load(folder, linearize=True, dtype=dtype)
        x = model.embed(ids)
        logits = model.unembed(jax.jit(lambda model, x: model(x))(model, x))
        lmap = jaxlin.local_map(model, x, position=position)
        figures[dtype] = float(np.abs(logits - expected).max()), lmap.residual
    # A few rows pass through the MLPs one matrix after the other; all of them, through both multiplied first.
    # How positions are rotated is no part of that.
    products = [lmap.T @ directions]
    if "rope" not in name:
        products.append(np.einsum("ro,otd->rtd", directions, lmap.jacobian()))
    differences = [np.abs(product[:DIRECTIONS] - expected_rows.rows).max() for product in products]
    rows = max(differences) / np.abs(expected_rows.rows).max()
    bias = float(jnp.linalg.norm(lmap.bias) / jnp.linalg.norm(lmap.output))
    columns = zip(figures["float32"], figures["float64"], strict=True)
    parity_row(name, *(figure for pair in columns for figure in pair), rows, bias)

    # Logits are of order 5; where weights are stored in 16 bits both sides widen them to float32.
    assert 1 < np.abs(reference).max() < 30
    assert figures["float32"][0] <= 2e-5
    assert figures["float64"][0] <= 1e-10
    assert figures["float32"][1] <= 3e-6
    assert figures["float64"][1] <= 1e-13
    np.testing.assert_allclose(lmap.output, expected_rows.output, atol=1e-10)
    assert rows <= 1e-10
    np.testing.assert_allclose(directions[:DIRECTIONS] @ np.asarray(lmap.bias), expected_rows.bias, atol=1e-10)
    assert (bias > 1e-2) == tiny.VARIANTS[name].biases


@pytest.mark.parametrize(
    ("name", "rule"),
    [*((name, "up") for name in ("llama, biases", "gemma2", "qwen2", "olmo2", "phi")), ("qwen2", "half")],
)
def test_rules(name: str, rule: str, checkpoint: Callable[[str], Path], x64: None) -> None:
    folder, ids = checkpoint(name), tiny.IDS
    directions = directions_of(np.random.default_rng(0))
    expected = oracle.frozen_rows(folder, ids, -1, directions[:DIRECTIONS], rule)
    model, _ = jaxlin.load(folder, dtype="float64")
    lmap = jaxlin.local_map(model, model.embed(ids), rule=rule)
    assert lmap.residual <= 1e-13
    for rows in (lmap.T @ directions, np.einsum("ro,otd->rtd", directions, lmap.jacobian())):
        np.testing.assert_allclose(rows[:DIRECTIONS], expected.rows, atol=1e-10 * np.abs(expected.rows).max())
    np.testing.assert_allclose(directions[:DIRECTIONS] @ np.asarray(lmap.bias), expected.bias, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_the_oracle_can_tell(name: str, checkpoint: Callable[[str], Path], x64: None) -> None:
    """The frozen torch model reconstructs; the ordinary Jacobian does not."""
    folder, ids = checkpoint(name), tiny.IDS
    model, _ = jaxlin.load(folder, dtype="float64")
    x = np.asarray(model.embed(ids))
    u = np.random.default_rng(0).normal(size=(1, 64))
    expected = oracle.frozen_rows(folder, ids, -1, u)
    np.testing.assert_allclose((expected.rows[0] * x).sum() + expected.bias[0], u[0] @ expected.output, rtol=1e-12)
    ordinary = jax.vjp(lambda x: model(x)[-1], jnp.asarray(x))[1](jnp.asarray(u[0]))[0]
    assert abs((ordinary * x).sum() + expected.bias[0] - u[0] @ expected.output) > 1e-3 * abs(u[0] @ expected.output)
