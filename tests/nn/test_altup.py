"""Several residual streams, and MLPs with few active neurons: Gemma 3n."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
import torch
from flax import nnx

import jaxlin
from jaxlin.models.gemma3n_gguf import sparsity_of
from jaxlin.nn import Place
from jaxlin.nn.context import Context, Evaluation
from jaxlin.nn.top_k_mlp import TopKGatedMLP

NAME, LAYER, POSITION = "gemma3n_text", 2, 14


@pytest.fixture
def model(checkpoint: Callable[[str], Path], x64: None) -> Any:
    return jaxlin.load(checkpoint(NAME), linearize=True, dtype="float64")[0]


def rows_from_the_first_stream(folder: Path, u: np.ndarray) -> np.ndarray:
    """Rows of the frozen model in transformers from the first of the streams that enter a layer."""
    reference = oracle.load(folder, torch.float64)
    streams: list[torch.Tensor] = []

    def keep(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        streams.append(arguments[0].detach().requires_grad_())
        return streams[0], *arguments[1:]

    with oracle.lifted(reference), oracle.frozen(reference, "gate"):
        reference.model.layers[LAYER].register_forward_pre_hook(keep)
        leaves = oracle.inputs(reference, tiny.IDS)
        output = oracle.body(reference)(**leaves, use_cache=False).last_hidden_state[0, POSITION]
        rows = [torch.autograd.grad(output @ torch.as_tensor(row), streams[0], retain_graph=True)[0][0, 0] for row in u]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("remat", [False, True])
def test_a_map_between_layers_is_that_of_the_first_stream(
    model: Any, remat: bool, checkpoint: Callable[[str], Path]
) -> None:
    """The other streams pass it by, and are in its bias."""
    depth = model.config.num_hidden_layers
    assert [model.is_cut(Place(layer)) for layer in range(depth + 1)] == [True, *[False] * (depth - 1), True]
    x, u = model.embed(tiny.IDS), np.random.default_rng(0).normal(size=(8, 64))
    lmap = jaxlin.local_map(model, x, source=("resid_pre", LAYER), position=POSITION, remat=remat)
    assert lmap.residual <= 1e-13
    assert np.linalg.norm(lmap.bias) > 0.1 * np.linalg.norm(lmap.output)
    expected = rows_from_the_first_stream(checkpoint(NAME), u)
    np.testing.assert_allclose(lmap.T @ u, expected, atol=1e-12 * np.abs(expected).max())


def test_an_activation_that_depends_on_all_gates(model: Any, x64: None) -> None:
    """Most neurons are off; the derivative is the same where matrices may be folded, and finite at no text."""
    mlp = TopKGatedMLP(model.config, features=96, sparsity=0.9, rngs=nnx.Rngs(0))
    x, v = np.random.default_rng(0).normal(size=(2, 5, 64))
    neurons = np.asarray(mlp.neurons(jnp.asarray(x), Context()))
    assert 0.02 < np.mean(neurons != 0) < 0.25

    def derivative(fold: bool) -> Any:
        return jax.jvp(lambda x: mlp(x, Context(evaluation=Evaluation(fold=fold))), (x,), (v,))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), derivative(True), derivative(False))
    nothing = jax.grad(lambda x: jnp.sum(mlp(x, Context())))(jnp.zeros((2, 64)))
    assert np.isfinite(nothing).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.123456789])
def test_shares_come_back_from_gguf(share: float) -> None:
    scale = torch.distributions.Normal(0, 1).icdf(torch.tensor(share)).item()
    assert abs(sparsity_of(scale) - share) <= (0 if round(share, 6) == share else 1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_sparsity_pattern": [0.5]}, "activation_sparsity_pattern.*4 numbers"),
        ({"activation_sparsity_pattern": [1.0] * 4}, "activation_sparsity_pattern.*below 1"),
        ({"intermediate_size": [64, 96]}, "intermediate_size.*each of 4 layers"),
        ({"intermediate_size": [64, -1]}, "intermediate_size.*positive"),
        ({"altup_active_idx": 1}, "altup_active_idx.*expected 0"),
        ({"num_kv_shared_layers": 3}, "num_kv_shared_layers.*of its own"),
        ({"hidden_size_per_layer_input": 0}, "hidden_size_per_layer_input"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
    ],
)
@pytest.mark.usefixtures("uncompiled_plans")
def test_what_cannot_be_computed_is_refused(
    change: dict[str, Any], message: str, checkpoint: Callable[[str], Path]
) -> None:
    config = json.loads((checkpoint(NAME) / "config.json").read_text())
    with pytest.raises(jaxlin.JaxlinError, match=message):
        jaxlin.memory_plan({**config, **change}, tokens=4)


@pytest.mark.usefixtures("uncompiled_plans")
def test_defaults_are_those_of_transformers(checkpoint: Callable[[str], Path]) -> None:
    """A config of E2B's size that says as little as it may, against all that transformers writes of it."""
    import transformers

    sizes = {"hidden_size": 64, "num_hidden_layers": 30, "num_kv_shared_layers": 10}
    full = transformers.Gemma3nTextConfig(**sizes).to_dict()
    bare = {"model_type": "gemma3n_text", **sizes, "query_pre_attn_scalar": 256, "altup_lr_multiplier": 1.0}
    assert jaxlin.memory_plan(full, tokens=4) == jaxlin.memory_plan(bare, tokens=4)
