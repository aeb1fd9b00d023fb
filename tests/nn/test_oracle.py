"""The oracle is held to what it claims before anything is held to the oracle."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import margins
import numpy as np
import oracle
import pytest
import tiny
import torch
from torch.overrides import TorchFunctionMode

import jaxlin

Checkpoint = Callable[[str], Path]
POSITION = len(tiny.IDS) - 2
"""Not the last one: what comes after a position must not reach it."""

STRUCTURES = ["llama", "llama, biases", "gemma2", "phi3", "phi", "olmo", "olmo, clip_qkv"]
"""One of each nonlinearity: gated, biased, with softcaps, fused, ungated under LayerNorm, weightless, clamped."""


class Dtypes(TorchFunctionMode):
    """The floating dtypes of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {
            part.dtype
            for part in (out if isinstance(out, tuple) else (out,))
            if isinstance(part, torch.Tensor) and part.is_floating_point()
        }
        return out


@pytest.mark.parametrize("name", [*STRUCTURES, "llama, rope yarn", "llama, rope dynamic, long", "llama, rope llama3"])
def test_lifted_means_no_float32_anywhere(name: str, checkpoint: Checkpoint) -> None:
    """Rotary tables, norms and softmax included; without the lift transformers passes through float32."""
    folder, ids = checkpoint(name), torch.tensor([tiny.ids_of(tiny.VARIANTS[name])])
    model = oracle.load(folder, torch.float64)
    with torch.no_grad(), Dtypes() as plain:
        rounded = model(input_ids=ids).logits[0].numpy()
    with torch.no_grad(), Dtypes() as lifted, oracle.lifted(model):
        exact = model(input_ids=ids).logits[0].numpy()
        tables = [tensor.dtype for key, tensor in model.named_buffers() if key.endswith("inv_freq")]
    assert torch.float32 in plain.seen
    assert lifted.seen == {torch.float64}
    assert set(tables) == {torch.float64}
    assert 1e-9 < np.abs(exact - rounded).max() < 1e-4
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("rule", oracle.SHARES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_frozen_model_reconstructs_the_untouched_one(name: str, rule: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(name)
    held = oracle.frozen_map(folder, tiny.IDS, POSITION, rule)
    untouched = oracle.reference(folder, tiny.IDS, torch.float64).states[POSITION]
    size = np.linalg.norm(untouched)
    assert np.linalg.norm(held.output - untouched) <= 1e-14 * size
    x = oracle.embeddings(folder, tiny.IDS)
    assert np.linalg.norm(np.einsum("otd,td->o", held.rows, x) + held.bias - untouched) <= 1e-13 * size
    assert not held.rows[:, POSITION + 1 :].any()


def test_freezing_leaves_the_forward_pass_bit_identical(checkpoint: Checkpoint) -> None:
    """Where no closed form stands in for a function, not a bit changes."""
    folder = checkpoint("llama, biases")
    for dtype in (torch.float32, torch.float64):
        held = oracle.frozen_rows(folder, tiny.IDS, POSITION, np.zeros((1, 64)), "half", dtype)
        np.testing.assert_array_equal(held.output, oracle.reference(folder, tiny.IDS, dtype).states[POSITION])


@pytest.mark.parametrize("name", ["llama, biases", "gemma2", "phi3"])
def test_half_is_the_mean_of_gate_and_up(name: str, tmp_path: Path) -> None:
    """Exactly so in a model of one layer, where the held MLP enters once."""
    variant = tiny.VARIANTS[name]
    folder = tiny.build(replace(variant, options={**variant.options, "num_hidden_layers": 1}), tmp_path)
    gate, up, half = (oracle.frozen_map(folder, tiny.IDS, POSITION, rule) for rule in ("gate", "up", "half"))
    scale = np.abs(half.rows).max()
    np.testing.assert_allclose(half.rows, (gate.rows + up.rows) / 2, atol=1e-13 * scale)
    np.testing.assert_allclose(half.bias, (gate.bias + up.bias) / 2, atol=1e-13 * np.abs(half.output).max())
    assert np.abs(gate.rows - up.rows).max() > 1e-2 * scale


def test_rows_are_products_with_the_map(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama, biases")
    directions = np.random.default_rng(0).normal(size=(3, 64))
    whole = oracle.frozen_map(folder, tiny.IDS, POSITION)
    rows = oracle.frozen_rows(folder, tiny.IDS, POSITION, directions)
    np.testing.assert_allclose(rows.rows, np.einsum("ro,otd->rtd", directions, whole.rows), atol=1e-12)
    np.testing.assert_allclose(rows.bias, directions @ whole.bias, atol=1e-12)


def test_without_biases_there_is_no_b(checkpoint: Checkpoint) -> None:
    assert not oracle.frozen_map(checkpoint("gemma2"), tiny.IDS, POSITION).bias.any()


@pytest.mark.parametrize("name", ["llama, biases", "gemma2", "phi"])
def test_the_ordinary_jacobian(name: str, checkpoint: Checkpoint, x64: None) -> None:
    """Against finite differences, far from the held map, and equal to what JAX gives of the ordinary model."""
    folder = checkpoint(name)
    jacobian = oracle.ordinary_jacobian(folder, tiny.IDS, POSITION)
    x = oracle.embeddings(folder, tiny.IDS)
    v = np.random.default_rng(0).normal(size=x.shape)
    model = oracle.load(folder, torch.float64)

    def states(x: np.ndarray) -> np.ndarray:
        return model.base_model(inputs_embeds=torch.tensor(x)[None]).last_hidden_state[0, POSITION].numpy()

    step = 1e-5
    with torch.no_grad(), oracle.lifted(model):
        slope = (states(x + step * v) - states(x - step * v)) / (2 * step)
    along = np.einsum("otd,td->o", jacobian, v)
    assert np.linalg.norm(along - slope) <= 1e-6 * np.linalg.norm(slope)

    held = oracle.frozen_map(folder, tiny.IDS, POSITION)
    assert np.linalg.norm(jacobian - held.rows) > 1e-2 * np.linalg.norm(held.rows)

    ported, _ = jaxlin.load(folder, linearize=False, dtype="float64")
    ours = jax.jit(jax.jacrev(lambda model, x: model(x)[POSITION], argnums=1))(ported, jnp.asarray(x))
    np.testing.assert_allclose(ours, jacobian, atol=1e-10 * np.abs(jacobian).max())


@pytest.mark.parametrize("rule", ["up", "half"])
def test_rules_of_a_fused_gate(rule: str, checkpoint: Checkpoint, x64: None) -> None:
    """Phi-3 stores gate and up as one matrix: jaxlin splits it when loading, the oracle when running."""
    held = oracle.frozen_map(checkpoint("phi3"), tiny.IDS, POSITION, rule)
    model, _ = jaxlin.load(checkpoint("phi3"), dtype="float64")
    lmap = jaxlin.local_map(model, model.embed(tiny.IDS), position=POSITION, rule=rule)
    np.testing.assert_allclose(lmap.T @ np.eye(64), held.rows, atol=1e-10 * np.abs(held.rows).max())
    assert lmap.residual <= 1e-13


@pytest.mark.parametrize(
    ("name", "rule"), [("llama, biases", "up"), *(("gemma2", rule) for rule in oracle.SHARES), ("phi", "gate")]
)
def test_logits_through_a_softcap_and_their_own_bias(name: str, rule: str, checkpoint: Checkpoint, x64: None) -> None:
    """Contributions of tokens to logits: the oracle's sum to the untouched logits, and jaxlin's are the same."""
    folder, tokens = checkpoint(name), [9, 11]
    held = oracle.frozen_logits(folder, tiny.IDS, POSITION, tokens, rule)
    untouched = oracle.reference(folder, tiny.IDS, torch.float64).logits[POSITION, tokens]
    x = oracle.embeddings(folder, tiny.IDS)
    contributions = np.einsum("rtd,td->rt", held.rows, x)
    np.testing.assert_allclose(held.output, untouched, rtol=1e-13)
    np.testing.assert_allclose(contributions.sum(axis=1) + held.bias, untouched, rtol=1e-12)
    model, _ = jaxlin.load(folder, dtype="float64", linearize=True, rule=rule)
    for token, parts, bias in zip(tokens, contributions, held.bias, strict=True):
        found = jaxlin.attribute(model, jnp.asarray(x), token, position=POSITION)
        np.testing.assert_allclose(found.tokens, parts, atol=1e-11)
        np.testing.assert_allclose(found.bias, bias, atol=1e-11)


def test_the_margin_of_a_router(tmp_path: Path) -> None:
    """It is infinite without a router, well above rounding with one, and 0 where two experts always tie."""
    options = {**tiny.GQA, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    folder = tiny.build(tiny.Variant("MixtralConfig", options), tmp_path)
    margin = margins.router_margin(folder, tiny.IDS)
    assert margins.NOISE < margin < 0.5
    model = oracle.load(folder, torch.float64)
    for name, weight in model.named_parameters():
        if name.endswith("gate.weight"):
            weight.data[1:] = weight.data[:1]
    model.save_pretrained(folder)
    assert margins.router_margin(folder, tiny.IDS) <= 1e-15
