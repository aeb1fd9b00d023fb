"""Activation patching: against transformers with the values of another prompt put in by hooks, and its frozen model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
import torch

import jaxlin
from jaxlin.causal import activation_patching
from jaxlin.nn.sites import SiteError

POSITION, TOKEN = 3, 9
OTHER = [*tiny.IDS[:2], 5, *tiny.IDS[3:]]
"""A prompt that differs in one token."""


def hook(block: torch.nn.Module, kind: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """What stands at the site `kind` of `block` is changed."""
    if kind == "resid_pre":
        return block.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]), *inputs[1:]))

    def after(module: Any, inputs: Any, output: Any) -> Any:
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]), *output[1:])

    module = block if kind == "resid_post" else getattr(block, {"attn_out": "self_attn", "mlp_out": "mlp"}[kind])
    return module.register_forward_hook(after)


@contextmanager
def hooked(model: Any, kind: str, changes: dict[int, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    handles = [hook(model.base_model.layers[layer], kind, change) for layer, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logit(model: Any, ids: list[int]) -> Any:
    return model(input_ids=torch.tensor([ids])).logits[0, POSITION, TOKEN]


def values(model: Any, kind: str, ids: list[int]) -> list[torch.Tensor]:
    """What stands at the sites of all layers."""
    found: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda h: found.setdefault(layer, h)

    with torch.no_grad(), hooked(model, kind, {i: keep(i) for i in range(len(model.base_model.layers))}):
        logit(model, ids)
    return [found[layer] for layer in sorted(found)]


def effects(folder: Path, kind: str) -> np.ndarray:
    """How much the logit rises with each value of the other prompt put in."""
    model = oracle.load(folder, torch.float64)
    with torch.no_grad(), oracle.lifted(model):
        whole, there = logit(model, tiny.IDS), values(model, kind, OTHER)

        def put(layer: int, token: int) -> Callable[[torch.Tensor], torch.Tensor]:
            def change(h: torch.Tensor) -> torch.Tensor:
                h = h.clone()
                h[:, token] = there[layer][:, token]
                return h

            return change

        def risen(layer: int, token: int) -> float:
            with hooked(model, kind, {layer: put(layer, token)}):
                return float(logit(model, tiny.IDS) - whole)

        return np.array([[risen(layer, token) for token in range(POSITION + 1)] for layer in range(len(there))])


def predicted(folder: Path, kind: str) -> np.ndarray:
    """The gradient of the frozen model's logit in each value, times what the other prompt adds to it."""
    model = oracle.load(folder, torch.float64)
    with oracle.lifted(model):
        there, here = values(model, kind, OTHER), values(model, kind, tiny.IDS)
        probes = [torch.zeros_like(h, requires_grad=True) for h in here]

        def probed(layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda h: h + probes[layer]

        with oracle.frozen(model, "gate"), hooked(model, kind, {i: probed(i) for i in range(len(here))}):
            logit(model, tiny.IDS).backward()
    slopes = [cast(torch.Tensor, probe.grad) for probe in probes]
    found = [slope * (b - a) for slope, a, b in zip(slopes, here, there, strict=True)]
    return np.array([each[0, : POSITION + 1].sum(-1).numpy() for each in found])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama, biases", "attn_out"),
        ("mistral, window", "mlp_out"),
        *((name, "resid_pre") for name in ("gemma3_text", "phi", "olmo2", "qwen3")),
        ("gemma2", "resid_post"),
    ],
)
def test_against_transformers(name: str, kind: Any, checkpoint: Callable[[str], Path], x64: None) -> None:
    folder = checkpoint(name)
    model, _ = jaxlin.load(folder, dtype="float64")
    x, other = model.embed(tiny.IDS), model.embed(OTHER)
    found = activation_patching(model, x, other, TOKEN, kind=kind, position=POSITION)
    logits = [oracle.logits(folder, ids, torch.float64)[POSITION, TOKEN] for ids in (tiny.IDS, OTHER)]
    np.testing.assert_allclose((found.value, found.other), logits, atol=1e-11)
    np.testing.assert_allclose(found.effects, effects(folder, kind), atol=1e-11)
    np.testing.assert_allclose(found.predicted, predicted(folder, kind), atol=1e-11)
    assert np.abs(found.effects - found.predicted).max() > 1e-4  # the model is not its map


def test_the_prediction_is_the_frozen_model(checkpoint: Callable[[str], Path], x64: None) -> None:
    """The map from a layer to the output, applied to what the other prompt adds there."""
    model, _ = jaxlin.load(checkpoint("llama, biases"), dtype="float64", rule="up")
    x, other = model.embed(tiny.IDS), model.embed(OTHER)
    u = jax.random.normal(jax.random.key(0), (model.config.hidden_size,))
    found = activation_patching(model, x, other, u, kind="resid_mid")
    for layer in (0, 3):
        here, there = (jaxlin.local_map(model, each, source=("resid_mid", layer)) for each in (x, other))
        rise = jnp.einsum("td,td->t", here.T @ u, there.x - here.x)
        np.testing.assert_allclose(found.predicted[layer], rise, atol=1e-12)


def test_where_it_must_do_nothing_or_all(checkpoint: Callable[[str], Path], x64: None) -> None:
    model, _ = jaxlin.load(checkpoint("llama"), dtype="float64")
    x, other = model.embed(tiny.IDS), model.embed(OTHER)
    found = activation_patching(model, x, other, (9, 11))
    assert found.first == 2
    np.testing.assert_allclose(found.predicted[:, :2], 0, atol=1e-12)
    last = activation_patching(model, x, other, (9, 11), kind="resid_post")
    np.testing.assert_allclose(found.effects[1:], last.effects[:-1], atol=1e-12)
    np.testing.assert_allclose(last.effects[-1], [*[0] * (len(x) - 1), last.other - last.value], atol=1e-12)
    np.testing.assert_allclose(last.recovered[-1, -1], 1, atol=1e-12)
    np.testing.assert_allclose(found.recovered[0, 2], 1, atol=1e-12)  # the token that differs, in the embeddings
    same = activation_patching(model, x, x, (9, 11))
    np.testing.assert_allclose(same.effects, 0, atol=1e-12)
    np.testing.assert_allclose(same.predicted, 0, atol=1e-12)
    assert same.first == len(x)
    assert np.isnan(same.rank_correlation)


def test_refused(checkpoint: Callable[[str], Path]) -> None:
    model, _ = jaxlin.load(checkpoint("phi"))
    x = model.embed(tiny.IDS)
    with pytest.raises(SiteError, match="Sites: expected kinds of"):
        activation_patching(model, x, x, 9, kind="resid_mid")  # attention and MLP stand side by side
    with pytest.raises(SiteError, match="Position: expected one in"):
        activation_patching(model, x, x, 9, position=40)
