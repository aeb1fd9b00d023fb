"""Stacks of layers that are not all alike, against a loop over the layers one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unlike_layers
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlin
from jaxlin.causal import head_ablation, without_heads
from jaxlin.linearize.every_layer import sweep
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.modules import without_values
from jaxlin.nn.stack import Layout, Stack, layer_of, padded

IDS = [3, 1, 4, 1, 5, 9, 2]
DEPTH = len(unlike_layers.LAYERS)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return unlike_layers.build()


def layer_by_layer(model: Decoder, x: Any, edits: dict[int, Any] | None = None) -> Any:
    """The stream before each block and after the last, from each block by itself."""
    streams = [x]
    for layer in range(DEPTH):
        streams.append(model.block(layer, (edits or {}).get(layer, lambda s: s)(streams[-1]), Context()))
    return streams


@settings(deadline=None, max_examples=40)
@given(kinds=st.lists(st.sampled_from("ab"), min_size=1, max_size=12), ends=st.tuples(st.integers(), st.integers()))
def test_a_layout_has_every_layer_once_in_order(kinds: list[str], ends: tuple[int, int]) -> None:
    layout, depth = Layout.of((*kinds,)), len(kinds)
    assert layout.depth == depth
    rows = [{"value": jnp.full(2 if kind == "a" else 3, layer)} for layer, kind in enumerate(kinds)]
    stack = layout.stacked(rows)
    assert isinstance(stack, Stack) == (len(set(kinds)) > 1)
    for layer, kind in enumerate(kinds):
        for index in (layer, layout.locate(layer)):
            assert layer_of(stack, index)["value"].tolist() == [layer] * (2 if kind == "a" else 3)
    numbers = layout.stacked([jnp.asarray(layer) for layer in range(depth)])
    assert numbers.tolist() == list(range(depth))
    start, stop = sorted(end % (depth + 1) for end in ends)
    within = [
        layout.segments[run.segment].start + repeat * layout.segments[run.segment].period + place
        for run in layout.runs(start, stop)
        for repeat in run.repeats
        for place in run.places
    ]
    assert within == list(range(start, stop))


def test_a_model_without_values_has_the_shapes_of_one_that_is_drawn(model: Decoder) -> None:
    drawn = jax.eval_shape(lambda: type(model)(model.config, rngs=nnx.Rngs(0)))
    undrawn = without_values(lambda rngs: type(model)(model.config, rngs=rngs))
    assert jax.tree.flatten(undrawn) == jax.tree.flatten(drawn)


def test_a_period_is_found_whatever_surrounds_it() -> None:
    assert Layout.of((*"GGGA" * 3,)).segments[0].period == 4
    assert [(s.period, s.repeats) for s in Layout.of((*"DMMMM",)).segments] == [(1, 1), (1, 4)]
    assert [(s.period, s.repeats) for s in Layout.of((*"SSF" * 2 + "ssf" * 3,)).segments] == [(3, 2), (3, 3)]
    assert Layout.of((*"AAAA",)).is_uniform


def test_a_scan_is_the_loop_over_the_layers(model: Decoder) -> None:
    x = model.embed(IDS)
    streams = layer_by_layer(model, x)
    for start, stop in ((0, DEPTH), (0, 5), (1, 4), (2, 7), (4, 4)):
        y, seen = model.scan(
            streams[start], lambda _: Context(), start=start, stop=stop,
            collect=lambda ctx: ctx.hooks.values["resid_pre"],
        )  # fmt: skip
        np.testing.assert_allclose(y, streams[stop], atol=1e-5)
        for row, stream in zip(() if seen is None else seen, streams[start:stop], strict=True):
            np.testing.assert_allclose(row, stream, atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_the_map_is_exact(remat: bool, x64: None) -> None:
    model = unlike_layers.build(dtype="float64", linearize=True)
    x = model.embed(IDS)
    lmap = jaxlin.local_map(model, x, remat=remat)
    assert lmap.residual <= 1e-13
    np.testing.assert_allclose(lmap.jacobian(), jax.jacrev(lambda x: model(x)[-1])(x), atol=1e-12)
    assert float(jnp.linalg.norm(lmap.bias)) > 1e-2
    for source in (("resid_post", 0), ("resid_post", 4), ("resid_mid", 2), ("attn_out", 5)):
        assert jaxlin.local_map(model, x, source=source, remat=remat).residual <= 1e-13


def test_one_sweep_is_every_layer(model: Decoder) -> None:
    x, u = model.embed(IDS), jax.random.normal(jax.random.key(1), (2, 32))
    swept = sweep(model, jaxlin.freeze(model, x), u)["resid_pre"]
    for layer in range(DEPTH):
        expected = jaxlin.local_map(model, x, source=("resid_pre", layer)).T @ u
        np.testing.assert_allclose(swept[:, layer], expected, atol=1e-4)


def test_contributions_sum_and_absent_heads_are_not_numbers(model: Decoder) -> None:
    x = model.embed(IDS)
    attribution = jaxlin.attribute(model, x, 7, sources=True, neurons=200)
    assert max(attribution.defect, attribution.component_defect) < 1e-5
    counts = [unlike_layers.KINDS[kind]["num_attention_heads"] for kind in unlike_layers.LAYERS]
    assert (~np.isnan(attribution.heads)).sum(1).tolist() == counts
    np.testing.assert_allclose(np.nansum(attribution.heads, 1) + attribution.attn_bias, attribution.attn, atol=1e-5)
    np.testing.assert_allclose(attribution.sources.sum(2), attribution.heads, atol=1e-5)
    sizes = [unlike_layers.KINDS[kind]["intermediate_size"] for kind in unlike_layers.LAYERS]
    neurons = attribution.neurons
    assert all(index < sizes[layer] for layer, index in zip(neurons.layer, neurons.index, strict=True))
    every = jaxlin.attribute(model, x, 7, neurons=sum(sizes)).neurons
    for layer in range(DEPTH):
        total = every.contribution[every.layer == layer].sum() + attribution.mlp_bias[layer]
        np.testing.assert_allclose(total, attribution.mlp[layer], atol=1e-5)
    with pytest.raises(jaxlin.JaxlinError, match=f"0..{sum(sizes)}"):
        jaxlin.attribute(model, x, 7, neurons=sum(sizes) + 1)
    assert attribution.to_dict()["heads"][0][2] is None


def test_each_head_is_removed_where_it_is(model: Decoder) -> None:
    x = model.embed(IDS)
    ablation = head_ablation(model, x, 7, progress=False)
    value = float(model.unembed(model(x)[-1])[7])
    for layer, head in ((0, 1), (2, 3), (5, 0), (6, 2)):
        without = without_heads(model, [(layer, head)])
        effect = value - float(without.unembed(without(x)[-1])[7])
        np.testing.assert_allclose(ablation.effects[layer, head], effect, atol=1e-4)
    assert np.isnan(ablation.effects[0, 2:]).all()
    assert np.isfinite(ablation.rank_correlation)
    with pytest.raises(jaxlin.JaxlinError, match="head below 2"):
        without_heads(model, [(0, 2)])


def test_memory_does_not_grow_with_the_repeats() -> None:
    def temporary(repeats: int) -> int:
        model = unlike_layers.build(("narrow", "wide") * repeats)
        lmap = jaxlin.local_map(model, model.embed(IDS))
        u = jnp.ones((32, 32))
        analysis: Any = jax.jit(type(lmap).rmatvec).lower(lmap, u).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporary(6) <= 1.05 * temporary(3)


def test_padding_is_not_a_number() -> None:
    ragged = Layout.of((*"ab",)).stacked([jnp.ones((2, 5)), jnp.ones((3, 5))])
    assert np.isnan(padded(ragged)[0, 2]).all()
    assert np.isfinite(padded(ragged)[1]).all()
