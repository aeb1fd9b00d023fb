"""The proofs are proven: in every family, one corrupted factor makes residual and defect grow; a replay is affine."""

import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tiny
from kinds import PROVEN, WRAPPERS, model_type
from rich.console import Console

import jaxlin
import jaxlin.attribution.components
from jaxlin.attribution.result import Neurons
from jaxlin.causal.patching import Patching
from jaxlin.lens import exact
from jaxlin.linearize.frozen import FrozenFactors, Recording
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.residuals import MAX_DIRECTIONS, ResidualEstimate
from jaxlin.loading.registry import families
from jaxlin.report.terminal import show
from jaxlin.spectrum.prediction_ranks import MAX_KL, _predicts_same

Checkpoint = Callable[[str], Path]
DIRECT = ("altup.", "laurel.", "entry.", "exit.", "'input_layernorm.")
"""What the direct paths pass through where layers mix several streams."""

GROWN = 1e-4
"""The least residual and defect when one factor is wrong by 1 %."""


def test_no_family_is_left_out() -> None:
    assert {model_type(name) for name in (*PROVEN, *WRAPPERS)} == {
        kind for family in families() for kind in family.types
    }


def corruptions(frozen: FrozenFactors) -> Iterator[tuple[str, FrozenFactors]]:
    """For each factor, its name and the frozen factors with that factor 1 % too large in one layer.

    Indices of experts have no size: in one layer each is that of the next expert.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(frozen)
    for i, (path, array) in enumerate(leaves):
        layer = len(array) // 2
        if path[0].name != "layers":
            wrong = array * 1.01
        elif jnp.issubdtype(array.dtype, jnp.integer):
            wrong = array.at[layer].set((array[layer] + 1) % (array.max() + 1))
        else:
            wrong = array.at[layer].multiply(1.01)
        arrays = [array for _, array in leaves]
        yield jax.tree_util.keystr(path), jax.tree.unflatten(structure, [*arrays[:i], wrong, *arrays[i + 1 :]])


def missed(lmap: LocalMap, frozen: FrozenFactors, factor: str) -> float:
    """The residual of `lmap` with other frozen factors.

    The weights of experts multiply their biases alone, where they are a factor of their own, and so b. That of `lmap`
    is stored, so the frozen model is run in its place.
    """
    if "mlp.weights" not in factor:
        return float(replace(lmap, frozen=frozen).estimate_residual(MAX_DIRECTIONS).value)
    output = jaxlin.replay(lmap.model, frozen, lmap.x[: int(lmap.position) + 1])[-1]
    return float(jnp.linalg.norm(output - lmap.output) / jnp.linalg.norm(lmap.output))


@pytest.mark.parametrize("name", PROVEN)
def test_family(name: str, checkpoint: Checkpoint, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residual and defects are at rounding, or above `GROWN` if a factor is corrupted; the replay is affine."""
    model, _ = jaxlin.load(checkpoint(name), dtype="float64")
    lmap = jaxlin.local_map(model, model.embed(tiny.IDS))
    attributed, targets = attributions(lmap, monkeypatch), targets_of(lmap)
    right = attributed(lmap.frozen, targets[0])
    assert lmap.residual <= 1e-13
    assert max(right.defect, right.component_defect) <= 1e-12
    for factor, frozen in corruptions(lmap.frozen):
        assert missed(lmap, frozen, factor) > GROWN, factor
        # What is wrong may be about orthogonal to a target.
        assert any(attributed(frozen, target).defect > GROWN for target in targets), factor
        # The parts of the model add measured values to the stream, so only what is on the direct paths can make their
        # sum wrong: the final norm, and where layers mix several streams, what these pass through.
        on_direct_path = ("norm[", *(DIRECT if model.direct_factors() is None else ()))
        counted = targets if any(part in factor for part in on_direct_path) else targets[:1]
        grown = any(attributed(frozen, target).component_defect > GROWN for target in counted)
        assert grown == (counted is targets), factor
    check_affine(lmap)


def targets_of(lmap: LocalMap) -> list[jax.Array]:
    """Some directions of the output."""
    d = lmap.shape[0]
    return [jnp.linspace(-1, 1, d), *jnp.asarray(np.random.default_rng(0).normal(size=(7, d)))]


def attributions(
    lmap: LocalMap, monkeypatch: pytest.MonkeyPatch
) -> Callable[[FrozenFactors, jax.Array], jaxlin.Attribution]:
    """A function from frozen factors to the attribution whose parts come from them and not from the forward pass."""
    record = jaxlin.attribution.components.record

    @jax.jit
    def parts_of(model: jaxlin.Decoder, x: jax.Array, frozen: FrozenFactors, target: jax.Array) -> dict[str, jax.Array]:
        def corrupted(*args: Any, **options: Any) -> Recording:
            return record(*args, **options)._replace(frozen=frozen)

        monkeypatch.setattr(jaxlin.attribution.components, "record", corrupted)
        return jaxlin.attribution.components.contributions.__wrapped__(model, x, len(x) - 1, target, frozen.rule, 0)

    def attribution(frozen: FrozenFactors, target: jax.Array) -> jaxlin.Attribution:
        parts = jax.device_get(parts_of(lmap.model, lmap.x, frozen, target))
        return jaxlin.Attribution(**jax.tree.map(lambda a: a if a.ndim else float(a), parts))

    return attribution


def check_affine(lmap: LocalMap) -> None:
    """The replayed map is affine everywhere: the residual does not show a factor of degree 0 that is not frozen."""
    rng = np.random.default_rng(0)
    x = lmap.x[: lmap.frozen.tokens]  # later tokens have no influence on the position that is read
    y, z = rng.normal(size=(2, *x.shape))
    points = jnp.stack([x, y, z, 3 * y - 2 * z, 0 * y], axis=1)
    at_x, at_y, at_z, mixed, bias = jax.jit(jaxlin.replay)(lmap.model, lmap.frozen, points)[-1]
    exact = 1e-12 * np.linalg.norm(mixed)
    np.testing.assert_allclose(at_x, lmap.output, rtol=0, atol=exact)
    np.testing.assert_allclose(bias, lmap.bias, rtol=0, atol=exact)
    np.testing.assert_allclose(3 * at_y - 2 * at_z, mixed, rtol=0, atol=exact)
    # The transpose gives the rows of the same map.
    u = rng.normal(size=(MAX_DIRECTIONS, len(bias)))
    rows = np.einsum("rtd,td->r", (lmap.T @ u)[:, : len(y)], y)
    np.testing.assert_allclose(rows, u @ np.asarray(at_y - bias), rtol=0, atol=1e-12 * np.abs(rows).max())


@pytest.fixture
def biased(checkpoint: Checkpoint, x64: None) -> LocalMap:
    """The map of a model with biases."""
    model, _ = jaxlin.load(checkpoint("llama, biases"), dtype="float64")
    return jaxlin.local_map(model, model.embed(tiny.IDS))


def test_the_residual_is_that_of_every_row(biased: LocalMap) -> None:
    """The estimate agrees as far as its random directions allow, and `residual_of` all rows agrees to rounding."""
    parts = corruptions(biased.frozen)
    wrong_maps = [replace(biased, frozen=frozen) for _, frozen in parts]
    for wrong in (*wrong_maps, replace(biased, bias=1.01 * biased.bias), replace(biased, output=-biased.output)):
        jacobian = np.asarray(wrong.jacobian())
        missed = np.einsum("dte,te->d", jacobian, wrong.x) + wrong.bias - wrong.output
        exactly = np.linalg.norm(missed) / np.linalg.norm(wrong.output)
        np.testing.assert_allclose(wrong.residual_of(jacobian), exactly, rtol=1e-9)
        assert 0.6 < wrong.estimate_residual(MAX_DIRECTIONS).value / exactly < 1.6


def test_the_defect_of_an_exact_lens(biased: LocalMap, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("jaxlin.lens.exact_lens")  # the package gives its function of this name
    recorded = module._recorded
    for factor, frozen in corruptions(biased.frozen):
        monkeypatch.setattr(module, "_recorded", lambda *args, frozen=frozen: (frozen, *recorded(*args)[1:]))
        lens = exact(biased.model, biased.x)
        missed = np.linalg.norm(lens.parts.sum(1) + lens.bias - lens.output[None], axis=1)
        assert lens.defect > GROWN, factor
        np.testing.assert_allclose(lens.defect, missed.max() / np.linalg.norm(lens.output), rtol=1e-9)


def test_the_defect_of_streams(biased: LocalMap, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("jaxlin.attribution.layer_streams")
    _, frozen = next(corruptions(biased.frozen))
    record = module.record
    monkeypatch.setattr(module, "record", lambda *args, **sites: record(*args, **sites)._replace(frozen=frozen))
    monkeypatch.setattr(module, "_contributions", jax.jit(module._contributions.__wrapped__, static_argnames="rule"))
    streams = module.stream_contributions(biased.model, biased.x, 9)
    rows = np.concatenate([streams.tokens, streams.bias[:, None]], axis=1)
    scale = np.maximum(np.abs(rows).max(axis=1), abs(streams.value))
    missed = np.abs(rows.sum(axis=1) - streams.value) / scale
    assert streams.defect > GROWN
    np.testing.assert_allclose(streams.defect, missed.max(), rtol=1e-9)


def test_what_is_measured_is_what_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """An explanation has the residual and the defects of its results, and shows them."""
    model, tokenizer = jaxlin.load()
    estimate = ResidualEstimate(0.125, 0.0625, 4.0, 1)
    monkeypatch.setattr(LocalMap, "_estimate", property(lambda lmap: estimate))
    monkeypatch.setattr(LocalMap, "residual_of", lambda lmap, jacobian: 0.25)
    for owner, name, defect in (
        (jaxlin.Attribution, "defect", 0.5),
        (jaxlin.Attribution, "component_defect", 0.75),
        (importlib.import_module("jaxlin.attribution.layer_streams").StreamContributions, "defect", 0.625),
    ):
        monkeypatch.setattr(owner, name, property(lambda result, defect=defect: defect))
    for spectrum, residual in (("dense", 0.25), ("krylov", 0.125), ("none", 0.125)):
        explanation = jaxlin.explain(
            model, tokenizer, "The cat", spectrum=spectrum, top=1, with_detail=spectrum == "none"
        )
        assert (explanation.residual, explanation.defect) == (residual, 0.5)
        with io.StringIO() as shown:
            show(explanation, Console(file=shown, width=140))
            assert f"= {residual:.1e}" in shown.getvalue()
            interval = "measured in 1 random direction: 6.2e-02 to 4.0e+00 with 95 % confidence"
            assert (interval in shown.getvalue()) == (spectrum != "dense")
            assert "relative error 5e-01" in shown.getvalue()
    assert explanation.detail is not None
    assert (explanation.detail.stream_defect, explanation.detail.component_defect) == (0.625, 0.75)
    page = jaxlin.attribute(model, model.embed([3, 4]), 9)._repr_html_()
    assert "an error of 5e-01" in page
    assert "8e-01" in page


def test_a_defect_is_relative_to_the_largest_part() -> None:
    nothing = np.zeros((1, 1))
    neurons = Neurons(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    attribution = jaxlin.Attribution(
        2.0, np.array([3.0, -8.0]), 4.0, 1.0, np.array([4.0]), np.array([-3.0]), nothing, neurons, nothing, nothing, 2.0
    )
    assert (attribution.defect, attribution.component_defect) == (3 / 8, 2 / 4)
    assert replace(attribution, set_aside=3.0).defect == 0


def test_a_rank_correlation_is_of_effects_and_predictions() -> None:
    rng = np.random.default_rng(0)
    effects, predicted = rng.normal(size=(2, 3, 5))
    patching = Patching(0.0, 1.0, 2, effects, predicted)
    expected: Any = scipy.stats.spearmanr(effects[:, 2:], predicted[:, 2:], axis=None)
    np.testing.assert_allclose(patching.rank_correlation, expected.statistic, atol=1e-12)


def test_the_divergence_of_a_truncation_is_from_the_full_prediction() -> None:
    """In that direction: of points at this distance the other would count others as the same."""
    model, _ = jaxlin.load()
    h, g = np.random.default_rng(2).normal(size=(2, model.config.hidden_size))
    points = h[None] + np.linspace(0, 0.3, 2000)[:, None] * g[None]
    p = scipy.special.log_softmax(points @ np.asarray(model.embed_tokens.weight[...], np.float64).T, axis=1)
    forward, backward = (np.exp(p[:1]) * (p[:1] - p)).sum(1), (np.exp(p) * (p - p[:1])).sum(1)
    same = np.asarray(_predicts_same(model, jnp.asarray(points, jnp.float32), jnp.asarray(h, jnp.float32)))
    told_apart = (np.abs(forward - MAX_KL) > 1e-5) & (p.argmax(1) == p[0].argmax())
    np.testing.assert_array_equal(same[told_apart], (forward < MAX_KL)[told_apart])
    assert np.any((forward < MAX_KL)[told_apart] != (backward < MAX_KL)[told_apart])
