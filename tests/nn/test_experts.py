"""Mixtures of experts against sums over the experts of each token, written out."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from random_mixture import CHOSEN, EXPERTS, LAYERS, SHARED, VARIANTS, D, F, mixture

import jaxlin
from jaxlin.linearize.frozen import record
from jaxlin.linearize.residuals import MAX_DIRECTIONS
from jaxlin.nn.context import Context
from jaxlin.nn.expert_products import blocks_of
from jaxlin.nn.experts import ExpertMLP, ExpertParam
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.routers import SparseMixer
from jaxlin.nn.sites import InnerSite
from jaxlin.quantized import BFloat16, MixedStack
from jaxlin.quantized.mixed import layer_of

LONG = 30
"""So many tokens are sorted by expert."""


def silu(x: np.ndarray) -> np.ndarray:
    """Each number times its sigmoid."""
    return x / (1 + np.exp(-x))


def affine(module: Any, layer: int, index: Any, x: np.ndarray) -> np.ndarray:
    """The matrix of a layer, or of an expert of it, times `x`, with its bias if it has one."""
    y = np.asarray(module.weight.get_value())[layer][index] @ x
    return y if module.bias is None else y + np.asarray(module.bias[...])[layer][index]


def written_out(mlp: ExpertMLP, x: np.ndarray, layer: int) -> np.ndarray:
    """The sum over the experts of each token."""

    def one(module: Any, index: Any, x: np.ndarray) -> np.ndarray:
        g, u = (affine(projection, layer, index, x) for projection in (module.gate_proj, module.up_proj))
        return affine(module.down_proj, layer, index, silu(g) * u)

    out = np.zeros_like(x)
    for t, token in enumerate(x):
        scores = np.exp(np.asarray(mlp.gate.weight[...])[layer] @ token)
        chosen = np.argsort(-scores)[:CHOSEN]
        for expert, w in zip(chosen, scores[chosen] / scores[chosen].sum(), strict=True):
            before, after = (w, 1.0) if mlp.weighs_input else (1.0, w)
            out[t] += after * one(mlp.experts, expert, before * token)
        if mlp.shared_expert is not None:
            s = 1.0
            if mlp.shared_expert_gate is not None:
                s = 1 / (1 + np.exp(-affine(mlp.shared_expert_gate, layer, ..., token)))
            out[t] += s * one(mlp.shared_expert, ..., token)
    return out


@pytest.mark.parametrize("tokens", [3, LONG])
@pytest.mark.parametrize("name", VARIANTS)
def test_sum_over_the_experts_of_each_token(name: str, tokens: int, x64: None) -> None:
    model = mixture(**VARIANTS[name])
    x = np.random.default_rng(1).normal(size=(tokens, D))
    for layer in range(LAYERS):
        mlp = layer_of(model.layers, layer).mlp
        expected = written_out(model.layers.mlp, x, layer)
        np.testing.assert_allclose(mlp(jnp.asarray(x), Context()), expected, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "tokens", "rule"),
    [("gated", LONG, "gate"), ("gated", 3, "up"), ("shared", LONG, "half"), ("input", 3, "half"), ("biases", 3, "up")],
)
def test_map_is_the_jacobian_and_affine(name: str, tokens: int, rule: Any, x64: None) -> None:
    """Folded and unfolded rows, jacrev of the detached model, and replay at another point."""
    model = mixture(**VARIANTS[name])
    model.linearize, model.rule = True, rule
    x = model.embed(list(range(tokens)))
    rng = np.random.default_rng(0)
    lmap = jaxlin.local_map(model, x)
    expected = jax.jit(jax.jacrev(lambda model, x: model(x)[-1], argnums=1))(model, x)
    assert lmap.residual < 1e-13
    np.testing.assert_allclose(lmap.jacobian(), expected, atol=1e-12)
    u = rng.normal(size=(MAX_DIRECTIONS, D))
    np.testing.assert_allclose(lmap.T @ u, np.einsum("ro,otd->rtd", u, expected), atol=1e-12)
    y, z = rng.normal(size=(2, *x.shape))
    points = jnp.stack([y, z, 3 * y - 2 * z], axis=1)
    g_y, g_z, g_combined = jnp.moveaxis(jax.jit(jaxlin.replay)(model, lmap.frozen, points), 1, 0)
    np.testing.assert_allclose(3 * g_y - 2 * g_z, g_combined, atol=1e-12)


def test_columns_and_a_batch_of_prompts(x64: None) -> None:
    """Derivatives and prompts side by side, where JAX adds an axis to the loops over sorted tokens."""
    model = mixture(shared=SHARED, gated_shared=True)
    model.linearize = True
    x = model.embed(list(range(LONG)))
    forward, backward = (
        jax.jit(jac(lambda model, x: model(x)[-1], argnums=1))(model, x) for jac in (jax.jacfwd, jax.jacrev)
    )
    np.testing.assert_allclose(forward, backward, atol=1e-12)
    prompts = jnp.stack([x, x[::-1]])
    run = jax.jit(lambda model, x: model(x))
    together = jax.jit(jax.vmap(lambda model, x: model(x), (None, 0)))(model, prompts)
    np.testing.assert_allclose(together, jnp.stack([run(model, prompt) for prompt in prompts]), atol=1e-12)


def test_attribution_sums(x64: None) -> None:
    model = mixture(shared=SHARED, bias=True)
    x = model.embed(list(range(LONG)))
    result = jaxlin.attribute(model, x, 5, neurons=model.config.neurons * LAYERS)
    assert result.defect < 1e-12
    assert result.component_defect < 1e-12
    by_layer = np.zeros(LAYERS)
    np.add.at(by_layer, result.neurons.layer, result.neurons.contribution)
    np.testing.assert_allclose(by_layer + result.mlp_bias, result.mlp, atol=1e-12)


def test_route_is_a_site(x64: None) -> None:
    """It is recorded beside the neurons of the chosen experts, and an edit changes which experts run."""
    model = mixture()
    x = model.embed([1, 2, 3])
    recording = record(model, x, (InnerSite.ROUTE, InnerSite.NEURONS))
    route = recording.sites[InnerSite.ROUTE]
    assert route.experts.shape == route.weights.shape == (LAYERS, 3, CHOSEN)
    np.testing.assert_array_equal(recording.frozen.layers["mlp.experts"], route.experts)
    np.testing.assert_allclose(route.weights.sum(-1), 1)
    assert recording.sites[InnerSite.NEURONS].shape == (LAYERS, 3, CHOSEN * F)
    mlp = layer_of(model.layers, 0).mlp
    without = Hooks(edits={InnerSite.ROUTE: lambda route: route._replace(weights=jnp.zeros_like(route.weights))})
    np.testing.assert_array_equal(mlp(x, Context(hooks=without)), jnp.zeros_like(x))


def test_packed_stacks_of_unlike_layers(x64: None) -> None:
    """Layer 0 in the bits of bfloat16, layer 1 in float32."""
    model = mixture()
    packed = jax.tree.map(lambda a: a, model)
    for projection, other in zip(*(m.layers.mlp.experts.projections for m in (model, packed)), strict=True):
        narrow = np.asarray(projection.weight.get_value(), ml_dtypes.bfloat16)
        projection.weight = ExpertParam(jnp.asarray(narrow, jnp.float64))
        stacks = BFloat16(jnp.asarray(narrow[:1].view(np.uint16))), jnp.asarray(narrow[1:], jnp.float32)
        other.weight = ExpertParam(MixedStack(stacks, jnp.arange(2), jnp.zeros(2, jnp.int32)))
    x = model.embed(list(range(LONG)))
    expected, lmap = (jaxlin.local_map(m, x) for m in (model, packed))
    np.testing.assert_allclose(lmap.output, expected.output, atol=1e-12)
    np.testing.assert_allclose(lmap.jacobian(), expected.jacobian(), atol=1e-12)


def test_rows_copy_no_layer_of_experts(x64: None) -> None:
    """The temporary memory of rows does not grow with the number of layers or of experts."""

    def temporary_bytes(layers: int, experts: int) -> int:
        model = mixture(layers=layers, experts=experts)
        lmap = jaxlin.local_map(model, model.embed([1, 2]))
        rows = jax.jit(lambda lmap, u: lmap.T @ u).lower(lmap, jnp.ones((40, D))).compile()
        return rows.memory_analysis().temp_size_in_bytes

    few = temporary_bytes(2, 4)
    matrix = 8 * F * D
    assert temporary_bytes(6, 4) < few + 4 * matrix
    assert temporary_bytes(2, 64) < few + 8 * matrix


@pytest.mark.parametrize("tokens", [1, 40, 700])
def test_blocks_have_each_row_once(tokens: int) -> None:
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((tokens, EXPERTS)), axis=1)[:, :CHOSEN]
    blocks = blocks_of(jnp.asarray(experts, jnp.int32), EXPERTS, 1)
    group = blocks.places.shape[1]
    for g, rows in enumerate(np.asarray(blocks.choices)):
        own = experts[g * group : (g + 1) * group].reshape(-1)
        full = rows < group * CHOSEN
        assert sorted(rows[full]) == list(range(own.size))
        assert (own[rows[full]] == np.repeat(blocks.expert[g], rows.shape[1]).reshape(rows.shape)[full]).all()
        np.testing.assert_array_equal(rows.reshape(-1)[blocks.places[g].reshape(-1)[: own.size]], range(own.size))


def test_sparse_mixer(x64: None) -> None:
    """Two rounds of a softmax over the scores near the largest."""
    router = SparseMixer(D, EXPERTS, jitter=0.2, rngs=nnx.Rngs(0))
    scores = np.random.default_rng(0).normal(size=(200, EXPERTS))
    experts, weights = router.choose(jnp.asarray(scores))
    near_count = set()
    for row, chosen, weight in zip(scores, experts, weights, strict=True):
        remaining = dict(enumerate(row))
        for expert, w in zip(chosen.tolist(), weight, strict=True):
            top = max(remaining.values())
            assert remaining[expert] == top
            near = [s for s in remaining.values() if (top - s) / max(abs(s), top) <= 0.4]
            near_count.add(len(near))
            np.testing.assert_allclose(w, np.exp(top) / np.exp(near).sum(), rtol=1e-12)
            del remaining[expert]
    assert near_count >= {1, 2, 3}
