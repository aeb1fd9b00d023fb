"""Edits at every site: the same in a pass, a generation, maps and sums, which stay exact."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_llama
import tiny

import jaxlin
from jaxlin import steering
from jaxlin.causal import head_ablation, without_heads
from jaxlin.nn.sites import SiteError
from jaxlin.steering import SteeringError, add, apply, edited, mean_ablation, patch, resample_ablation, zero_ablation

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def in_64_bits() -> Iterator[None]:
    """64-bit mode for the whole file, so that its programs are compiled once."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def llama(in_64_bits: None) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float64), random_llama.build(dtype="float64"))


def square(value: Any) -> Any:
    return value**2 / 4


def every_site(model: Any) -> list[Any]:
    """Edits of each kind of site, nonlinear ones, and some at heads or positions alone."""
    width = model.config.hidden_size
    return [
        add("embed", RNG.normal(size=width), 0.3),
        apply(("heads", 1), jnp.tanh, units=(0, 1), where=(1, 2, 3)),
        apply(("neurons", 0), jnp.tanh, units=3),
        apply(("mlp_out", 2), square, 0.5),
        zero_ablation(("q", 1), units=1),
        apply(("k", 0), square),
        apply(("v", 1), jnp.sin, units=0),
        apply(("pattern", 2), square, units=1),
        add(("resid_mid", 1), RNG.normal(size=width), 2.0, scale="absolute", where=(2, 3)),
        add(("resid_post", 1), RNG.normal(size=width), 0.5),
        apply(("resid_post", 2), jnp.sin),
    ]


def check_exact(model: Any, x: Any) -> None:
    """The map and the sums of a model that carries edits reconstruct its outputs."""
    lmap = jaxlin.local_map(model, x)
    assert lmap.residual <= 1e-13
    parts = jaxlin.attribute(model, x, 5, neurons=0)
    assert max(parts.defect, parts.component_defect) <= 1e-12
    np.testing.assert_allclose(np.nansum(parts.heads, axis=1) + parts.attn_bias, parts.attn, atol=1e-10)
    assert np.abs(parts.edits).max() > 1e-3


def test_maps_and_sums_of_an_edited_model(llama: Any) -> None:
    x = llama.embed(random_llama.IDS)
    edits = every_site(llama)
    model = jaxlin.with_edits(llama, edits)
    np.testing.assert_allclose(model(x), edited(llama, x, edits), atol=1e-13)
    assert np.abs(model(x) - llama(x)).max() > 0.1
    check_exact(model, x)
    lmap, u = jaxlin.local_map(model, x), RNG.normal(size=(3, 32))
    rows = jax.vmap(jax.vjp(lambda x: model.linearized(x)[-1], x)[1])(u)[0]
    np.testing.assert_allclose(lmap.T @ u, rows, atol=1e-12)
    assert jaxlin.lens.exact(model, x).defect <= 1e-13
    assert jaxlin.local_map(model, x, remat=True).residual <= 1e-13
    inner = jaxlin.local_map(model, x, source=("resid_mid", 1))
    assert inner.residual <= 1e-13
    # The proof fails where the value that an edit was differentiated at is wrong.
    layers: Any = lmap.frozen.layers
    name = next(name for name in layers if name.endswith("edit heads"))
    wrong = dataclasses.replace(lmap.frozen, layers={**layers, name: 1.01 * layers[name]})
    broken = jaxlin.replay(model, wrong, x)
    assert np.abs(broken[-1] - lmap.output).max() > 1e-6


def test_layers_that_are_not_alike(checkpoint: Callable[[str], Path]) -> None:
    model, _ = jaxlin.load(checkpoint("qwen3_5_moe_text"), dtype="float64")
    x, layer = model.embed(tiny.IDS), model.config.num_hidden_layers - 1
    edits = [
        apply(("heads", layer), jnp.tanh, units=1),
        apply(("heads", 0), square),
        zero_ablation(("q", layer), units=0),
        patch(model, model.embed(tiny.IDS[::-1]), ("pattern", 1)),
        apply(("neurons", 1), jnp.tanh),
        add(("resid_post", 1), RNG.normal(size=model.config.hidden_size), 0.3),
    ]
    carrier = jaxlin.with_edits(model, edits)
    np.testing.assert_allclose(carrier(x), edited(model, x, edits), atol=1e-12)
    check_exact(carrier, x)


def test_ablation_and_patching(llama: Any) -> None:
    """By definition: zero is without the head, the values of the prompt itself change nothing."""
    x, other = llama.embed(random_llama.IDS), llama.embed([7, 8, 9, 1, 2, 3, 4])
    zero = zero_ablation(("heads", 1), units=2)
    without = jaxlin.with_edits(llama, [zero])
    np.testing.assert_allclose(without(x), without_heads(llama, [(1, 2)])(x), atol=1e-13)
    effects = head_ablation(llama, x, 5, progress=False)
    difference = effects.value - float(llama.unembed(without(x))[-1, 5])
    np.testing.assert_allclose(effects.effects[1, 2], difference, atol=1e-10)
    recorded, there = jaxlin.record(llama, x), jaxlin.record(llama, other)
    for site in ("resid_mid", "heads", "k", "pattern"):
        values = jaxlin.record(jaxlin.with_edits(llama, [patch(llama, other, (site, 1))]), x, (site, 1))[site, 1]
        np.testing.assert_allclose(values, there[site, 1], atol=1e-12)
    means = mean_ablation(llama, [[1, 2, 3], [4, 5]], ("neurons", 2), units=(0, 7))
    values = [jaxlin.record(llama, llama.embed(ids), ("neurons", 2))["neurons", 2] for ids in ([1, 2, 3], [4, 5])]
    edited_values = jaxlin.record(jaxlin.with_edits(llama, [means]), x, ("neurons", 2))["neurons", 2]
    np.testing.assert_allclose(edited_values[:, 7], np.concatenate(values)[:, 7].mean(), atol=1e-12)
    np.testing.assert_array_equal(edited_values[:, 1], recorded["neurons", 2][:, 1])
    drawn = resample_ablation(llama, [[1, 2, 3], [4, 5]], ("neurons", 2), seed=1)
    edited_values = jaxlin.record(jaxlin.with_edits(llama, [drawn]), x, ("neurons", 2))["neurons", 2]
    distances = np.abs(edited_values[:, None] - np.concatenate(values)[None]).max(-1)
    assert (distances.min(1) < 1e-12).all()
    assert len(set(distances.argmin(1))) > 1


def test_generation(checkpoint: Callable[[str], Path]) -> None:
    """With a cache, token by token, edits do what they do in one pass."""
    model, tokenizer = jaxlin.load(checkpoint("llama"), dtype="float64")
    edits = [
        zero_ablation(("heads", 1), units=2),
        apply(("k", 2), square),
        apply(("pattern", 3), square, units=0),
        add(("v", 0), RNG.normal(size=model.config.head_dim), 0.5, where=(2, 9)),
    ]
    new = jaxlin.generate(model, tokenizer, tiny.IDS[:7], 6, edits=edits, return_logits=True)
    expected = model.unembed(edited(model, model.embed(new.prompt + new.tokens), edits))[6:-1]
    np.testing.assert_allclose(np.asarray(new.logits), expected, atol=1e-10)
    carried = jaxlin.generate(jaxlin.with_edits(model, edits), tokenizer, tiny.IDS[:7], 6, return_logits=True)
    np.testing.assert_allclose(np.asarray(carried.logits), np.asarray(new.logits), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: [zero_ablation(("heads", 1), units=4)], SteeringError, "below 4, those of site .'heads', 1.; found 4"),
        (lambda: [add(("heads", 1), np.ones(32))], SteeringError, "expected 8 features"),
        (lambda: [add("final", np.ones(32))], SteeringError, "before the final norm"),
        (lambda: [add(("mlp_out", 1), np.ones(32), where="new")], SteeringError, "before the final norm"),
        (lambda: [zero_ablation(("route", 1))], SiteError, "expected a site of this model"),
        (lambda: [zero_ablation(("head", 1))], SiteError, "expected one of embed"),
        (lambda: [apply(("heads", 1), lambda z: z[0, 0, :3])], SteeringError, "expected a value of shape"),
        (lambda: [add(("mlp_out", 1), np.ones(32), scale="norm")], SteeringError, "relative"),
        (lambda: [zero_ablation(("heads", 1), units=-1)], SteeringError, "counted from 0"),
    ],
)
def test_what_does_not_fit_is_refused(llama: Any, make: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        jaxlin.with_edits(llama, make())(llama.embed(random_llama.IDS))
    assert steering.add is add


@pytest.mark.parametrize("kind", ["heads", "pattern", "neurons"])
def test_unit_patching_is_an_edit_of_each_unit(llama: Any, kind: str) -> None:
    x, other = llama.embed(random_llama.IDS), llama.embed([7, 8, 9, 1, 2, 3, 4])
    patching = jaxlin.causal.unit_patching(llama, x, other, 5, kind=kind, layers=[1], progress=False)
    model = jaxlin.with_edits(llama, [patch(llama, other, (kind, 1), units=2)])
    change = llama.unembed(model(x)[-1])[5] - patching.value
    np.testing.assert_allclose(patching.effects[1, 2], change, atol=1e-11)
    assert abs(float(change)) > 1e-3
    assert np.isnan(patching.effects[[0, 2]]).all()
    np.testing.assert_allclose(patching.other, llama.unembed(llama(other)[-1])[5], atol=1e-11)
    if kind == "pattern":
        assert np.isnan(patching.predicted).all()
    else:  # all units of a layer together are what the layer adds
        added: Any = {"heads": "attn_out", "neurons": "mlp_out"}[kind]
        whole = jaxlin.causal.activation_patching(llama, x, other, 5, kind=added, progress=False)
        np.testing.assert_allclose(patching.predicted.sum(1), whole.predicted.sum(1), atol=1e-11)
