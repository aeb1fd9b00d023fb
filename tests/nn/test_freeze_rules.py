"""A freeze rule that a user writes: every analysis takes it, and the residual shows where it is wrong."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_llama import IDS, build

import jaxlin
from jaxlin.common.errors import JaxlinError
from jaxlin.nn import BranchFactors
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import checked_rule


@dataclass(frozen=True)
class Mix:
    """The rule ``"gate"`` with the weight `alpha`, and ``"up"`` with the rest."""

    alpha: float

    def factors(self, g: jax.Array, u: jax.Array, slope: jax.Array, /) -> BranchFactors:
        return BranchFactors(gate=(1 - self.alpha) * slope * u, up=self.alpha * slope * g)


@dataclass(frozen=True)
class Wrong:
    """A rule whose factors do not multiply out to the MLP: off by a thousandth."""

    def factors(self, g: jax.Array, u: jax.Array, slope: jax.Array, /) -> BranchFactors:
        return BranchFactors(up=1.001 * slope * g)


@dataclass
class Mutable:
    """A rule that cannot be hashed."""

    alpha: float

    def factors(self, g: jax.Array, u: jax.Array, slope: jax.Array, /) -> BranchFactors:
        return Mix(self.alpha).factors(g, u, slope)


def dense(model: Decoder, x: jax.Array, rule: Any) -> np.ndarray:
    return np.asarray(jaxlin.local_map(model, x, rule=rule).jacobian(progress=False))


@pytest.mark.parametrize("remat", [False, True])
def test_a_mix_of_rules_gives_the_mix_of_their_maps(remat: bool, x64: None) -> None:
    """Exactly so in a model of one layer, where a frozen MLP enters once; folded rows take it too."""
    model = build(layers=1, dtype="float64")
    x = model.embed(IDS)
    lmap = jaxlin.local_map(model, x, rule=Mix(0.3), remat=remat)
    gate, up = dense(model, x, "gate"), dense(model, x, "up")
    found = lmap.jacobian(progress=False)
    np.testing.assert_allclose(found, 0.3 * gate + 0.7 * up, atol=1e-12)
    assert np.abs(gate - up).max() > 1e-3
    assert lmap.residual_of(found) <= 1e-13
    assert lmap.residual <= 1e-13


@pytest.mark.parametrize(("alpha", "name"), [(1.0, "gate"), (0.0, "up"), (0.5, "half")])
def test_the_ends_of_the_mix_are_the_named_rules(alpha: float, name: str, x64: None) -> None:
    model = build(layers=2, dtype="float64")
    x = model.embed(IDS)
    np.testing.assert_allclose(dense(model, x, Mix(alpha)), dense(model, x, name), atol=1e-13)


def test_every_way_to_the_map_takes_the_rule(x64: None) -> None:
    """Rows alone and in batches, `jacfwd` and `jacrev` of the linearized model, attributions, every layer's maps."""
    rule = Mix(0.3)
    model = build(layers=2, dtype="float64", linearize=True, rule=rule)
    x = model.embed(IDS)
    lmap = jaxlin.local_map(model, x)
    assert lmap.rule == rule
    assert "Mix(alpha=0.3)" in repr(lmap)
    rows = lmap.jacobian(progress=False)
    np.testing.assert_allclose(lmap.T @ jnp.eye(len(rows))[3], rows[3], atol=1e-13)
    for jacobian in (jax.jacfwd, jax.jacrev):
        found = jax.jit(jacobian(lambda model, x: model(x)[-1], argnums=1))(model, x)
        np.testing.assert_allclose(found, rows, atol=1e-12)
    plain = build(layers=2, dtype="float64", linearize=False)
    np.testing.assert_array_equal(jax.jit(lambda model, x: model(x))(model, x), jax.jit(plain.__call__)(x))
    maps = jaxlin.layer_maps(model, jaxlin.freeze(model, x))["resid_pre"]
    np.testing.assert_allclose(maps[0], rows, atol=1e-12)
    attribution = jaxlin.attribute(model, x, 7)
    assert attribution.defect <= 1e-13
    assert attribution.component_defect <= 1e-13
    other = jaxlin.attribute(model, x, 7, rule="gate")
    assert np.abs(np.asarray(attribution.tokens) - np.asarray(other.tokens)).max() > 1e-4


@pytest.mark.parametrize("name", ["llama, biases", "gemma2", "phi3"])
def test_ported_models_in_float32(name: str, checkpoint: Callable[[str], Path]) -> None:
    model, _ = jaxlin.load(checkpoint(name), rule=Mix(0.3))
    lmap = jaxlin.local_map(model, model.embed(tiny.IDS))
    assert lmap.rule == Mix(0.3)
    assert lmap.residual <= 3e-6


def test_a_wrong_rule_shows_in_the_residual(x64: None) -> None:
    model = build(layers=2, dtype="float64")
    x = model.embed(IDS)
    lmap = jaxlin.local_map(model, x, rule=Wrong())
    np.testing.assert_array_equal(lmap.output, jaxlin.local_map(model, x).output)
    assert lmap.residual > 1e-5
    assert lmap.residual_of(lmap.jacobian(progress=False)) > 1e-5
    assert jaxlin.attribute(model, x, 7, rule=Wrong()).defect > 1e-5


def without_branches(self: Any, g: Any, u: Any, slope: Any, /) -> BranchFactors:
    return BranchFactors()


def of_another_shape(self: Any, g: Any, u: Any, slope: Any, /) -> BranchFactors:
    return BranchFactors(up=jnp.ones(3))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("down", "Rule: expected one of gate, up, half; found 'down'."),
        (Mutable(0.3), "an object that can be hashed"),
        (type("Empty", (), {"factors": without_branches})(), "one array or two of shape"),
        (type("Narrow", (), {"factors": of_another_shape})(), "found BranchFactors"),
        (type("Bare", (), {"factors": lambda self, g, u, slope, /: g})(), "expected factors() to give BranchFactors"),
    ],
)
def test_what_is_refused(rule: Any, message: str) -> None:
    model = build(layers=1)
    with pytest.raises(JaxlinError, match=re.escape(message)):
        jaxlin.local_map(model, model.embed(IDS), rule=rule)


@pytest.mark.parametrize("rule", [Mix, 3])
def test_what_is_no_rule(rule: Any) -> None:
    with pytest.raises(JaxlinError, match=r"an object with a method factors\(g, u, slope\)"):
        checked_rule(rule)
