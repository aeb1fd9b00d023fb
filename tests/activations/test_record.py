"""Recorded activations: those of transformers, and those that the equations of attention and the MLP make of others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import random_llama
import tiny
import torch

import jaxlin
from jaxlin.activations import SITES
from jaxlin.nn.sites import SiteError
from jaxlin.nn.stack import Stack

VARIANTS = ("llama, biases", "gemma2", "gpt_neox", "gemma4_text, k = v", "qwen3_5_moe_text", "mistral4")
"""Plain, sandwich and parallel blocks, shared values, delta rules with routers, latent attention."""


def close(ours: Any, expected: Any) -> None:
    """Equal to rounding, relative to the largest number."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_values(name: str, checkpoint: Callable[[str], Path]) -> None:
    """The streams and patterns are transformers', and each part of the model leads from one site to the next."""
    folder = checkpoint(name)
    model, _ = jaxlin.load(folder)
    ids = tiny.IDS
    recorded = jaxlin.record(model, model.embed(ids))
    depth = model.config.num_hidden_layers
    theirs = oracle.load(folder, torch.float32)
    with torch.no_grad():
        result = theirs(torch.tensor([ids]), output_hidden_states=True, output_attentions=True, use_cache=False)
    for layer in range(depth):
        if layer:
            close(recorded["resid_pre", layer], result.hidden_states[layer][0])
        attentions = [each for each in result.attentions if each is not None]
        if len(attentions) == depth:
            close(recorded["pattern", layer], attentions[layer][0])
    close(recorded["final"], result.hidden_states[-1][0])
    np.testing.assert_array_equal(recorded["embed"], recorded["resid_pre", 0])
    np.testing.assert_array_equal(recorded["resid_post"][:-1], recorded["resid_pre"][1:])
    close(model(model.embed(ids)), recorded["final"])

    for layer in range(depth):
        added = recorded["attn_out", layer] + recorded["mlp_out", layer]
        if "per_layer_out" not in recorded and name != "gemma4_text, k = v":  # whose streams are scaled in the block
            close(recorded["resid_pre", layer] + added, recorded["resid_post", layer])
        pattern, values = recorded["pattern", layer], recorded["v", layer]
        grouped = np.repeat(values, pattern.shape[0] // values.shape[1], axis=1)
        close(recorded["heads", layer], np.einsum("hts,shk->thk", pattern, grouped))
    assert {"q", "k", "neurons"} <= set(recorded.sites)
    assert ("route" in recorded) == ("moe" in name or name == "mistral4")


def test_queries_and_keys_make_the_pattern() -> None:
    """What is recorded is what enters the scores, after the rotation."""
    model = random_llama.build()
    recorded = jaxlin.record(model, model.embed(random_llama.IDS))
    k = np.repeat(recorded["k", 1], 2, axis=1)
    z = np.einsum("thk,shk->hts", recorded["q", 1], k) * 8**-0.5
    z = np.where(np.tril(np.ones(z.shape[1:], bool)), z, -np.inf)
    np.testing.assert_allclose(jax.nn.softmax(z, axis=-1), recorded["pattern", 1], atol=2e-6)


def test_layers_without_a_site(checkpoint: Callable[[str], Path]) -> None:
    """Layers that lack a site have no number there; those of another shape are not padded."""
    model, _ = jaxlin.load(checkpoint("qwen3_5_moe_text"))
    heads = jaxlin.record(model, model.embed(tiny.IDS), ("heads", "q"))["heads"]
    assert isinstance(heads, Stack)
    assert len({heads[layer].shape for layer in range(model.config.num_hidden_layers)}) > 1
    model, _ = jaxlin.load(checkpoint("gemma4_text, per layer"))
    recorded = jaxlin.record(model, model.embed(tiny.IDS), "k")
    absent = [layer for layer, own in enumerate(model.config.value_layers) if layer != own]
    assert absent
    with pytest.raises(SiteError, match=f"layer {absent[0]} has no k"):
        recorded["k", absent[0]]
    with pytest.raises(SiteError, match=f"layer {absent[0]} of this model has no k"):
        jaxlin.record(model, model.embed(tiny.IDS), ("k", absent[0]))


def test_names_and_transforms() -> None:
    """Single layers, TransformerLens' names, and `jax.jit`, `jax.vmap` and `jax.grad`."""
    model = random_llama.build()
    x = model.embed(random_llama.IDS)
    everything = jaxlin.record(model, x)
    assert set(everything.sites) == set(SITES) - {"per_layer_in", "per_layer_out", "route"}
    sites = ("blocks.1.attn.hook_z", ("post", -1), "rot_q", "final")
    some = jaxlin.record(model, x, sites)
    assert some.sites == ("q", "final", ("heads", 1), ("neurons", 2))
    for site in sites:
        np.testing.assert_array_equal(some[site], everything[site])
        assert site in some
    assert ("heads", 0) not in some
    assert "heads: " not in repr(some)

    batch = jax.jit(jax.vmap(lambda x: jaxlin.record(model, x, ("heads", 1))["heads", 1]))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(batch[0], everything["heads", 1], atol=1e-6)
    h = everything["heads", 1]
    gradient = jax.grad(lambda x: jnp.sum(jaxlin.record(model, x, "heads")["heads"][1] ** 2))(x)
    step = 1e-3 * jax.random.normal(jax.random.key(0), x.shape)
    change = jnp.sum(jaxlin.record(model, x + step, ("heads", 1))["heads", 1] ** 2) - jnp.sum(h**2)
    np.testing.assert_allclose(jnp.sum(gradient * step), change, rtol=0.1)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("resid_posts", "expected one of embed, resid_pre"),
        (("resid_posts",), "found 'resid_posts'"),
        (("heads", 3), "expected a layer in 0..2; found 3"),
        (("final", 1), r"found \('final', 1\)"),
        ("blocks.1.attn.hook_q", "read after their rotation"),
        ([], "expected one or more"),
        ("route", "this model has no route"),
    ],
)
def test_what_is_not_there_is_refused(sites: Any, message: str) -> None:
    model = random_llama.build()
    x = model.embed(random_llama.IDS)
    with pytest.raises(SiteError, match=message):
        jaxlin.record(model, x, sites)
    with pytest.raises(SiteError, match="expected a site that was recorded"):
        jaxlin.record(model, x, "final")["heads"]


def test_the_trap() -> None:
    """Of the linearized model the gradient of a loss is the frozen model's, and second derivatives are zero."""
    model = random_llama.build()
    x = model.embed(random_llama.IDS)

    def loss(model: Any, x: Any) -> Any:
        return jnp.sum(model(x)[-1] ** 3)

    plain = jax.grad(loss, argnums=1)(model, x)
    linearized = model.linearized
    assert linearized.linearize
    assert not linearized.plain.linearize
    assert not model.linearize
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (model, linearized.plain)), strict=True))
    frozen = jax.grad(loss, argnums=1)(linearized, x)
    output = model(x)[-1]
    np.testing.assert_allclose(frozen, jaxlin.local_map(model, x).T @ (3 * output**2), rtol=1e-3, atol=1e-4)
    assert np.abs(plain - frozen).max() > 0.1 * np.abs(plain).max()
    np.testing.assert_array_equal(jax.grad(loss, argnums=1)(linearized.plain, x), plain)

    def curvature(model: Any) -> Any:
        return jax.jvp(lambda z: jax.jvp(lambda z: model(z)[-1], (z,), (x,))[1], (x,), (x,))[1]

    assert np.abs(curvature(model)).max() > 1e-2
    assert not np.abs(curvature(linearized)).any()
