"""Inputs that are bound to token ids, and values that pass the stream by: Gemma 4 with per-layer embeddings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlin
from jaxlin.attribution import stream_contributions
from jaxlin.lens import exact
from jaxlin.nn import Place, Prompt, PromptError

NAME = "gemma4_text, per layer"
CUTS = [True, True, True, False, False, False]
"""Whether the stream that enters each layer is a cut: layers 4 and 5 read the values of layers 2 and 3."""


@pytest.fixture
def model(checkpoint: Callable[[str], Path], x64: None) -> Any:
    return jaxlin.load(checkpoint(NAME), linearize=True, dtype="float64")[0]


def test_a_prompt_is_an_array_that_keeps_its_ids(model: Any) -> None:
    x = model.embed(tiny.IDS)
    f = lambda model, x: model(x)[-1]
    jacobian = jax.jit(jax.jacfwd(f, argnums=1))(model, x)
    output = sum(jacobian[:, t] @ x[t] for t in range(len(x)))
    np.testing.assert_allclose(output, f(model, x), atol=1e-12)
    np.testing.assert_allclose(jacobian, jaxlin.local_map(model, x).jacobian(), atol=1e-12)
    for kept, ids in ((x + 0.0, tiny.IDS), (2 * x[3:7] / 2, tiny.IDS[3:7]), (-(x * -1), tiny.IDS)):
        np.testing.assert_array_equal(model(kept), model(model.embed(ids)))
    with pytest.raises(PromptError, match=r"token ids besides; found an array without ids"):
        model(jnp.asarray(np.asarray(x)))
    with pytest.raises(PromptError, match="as many token ids as embeddings; found 2 and 20"):
        model(Prompt(x.x, (1, 2)))


def test_other_ids_give_another_output_from_the_same_embeddings(model: Any) -> None:
    x = model.embed(tiny.IDS)
    other = Prompt(x.x, tuple(reversed(tiny.IDS)))
    assert np.abs(model(x) - model(other)).max() > 1e-3


@pytest.mark.parametrize("remat", [False, True])
def test_a_map_from_where_the_stream_is_no_cut_has_the_rest_in_its_bias(model: Any, remat: bool) -> None:
    x = model.embed(tiny.IDS)
    assert [model.is_cut(Place(layer)) for layer in range(6)] == CUTS
    others = model.is_cut(Place(6)), model.is_cut(Place(2, 2)), model.is_cut(Place(0, 4))
    assert others == (True, False, False)
    for layer in (2, 4):
        lmap = jaxlin.local_map(model, x, source=("resid_pre", layer), remat=remat)
        assert lmap.residual <= 1e-13
        assert (np.linalg.norm(lmap.bias) > 0.05 * np.linalg.norm(lmap.output)) is not CUTS[layer]


def test_sums_count_what_passes_the_stream_by(model: Any) -> None:
    x = model.embed(tiny.IDS)
    assert stream_contributions(model, x, 7).defect <= 1e-12
    parts = exact(model, x)
    np.testing.assert_allclose(
        parts.parts.sum(1) + parts.bias, np.broadcast_to(parts.output, parts.bias.shape), atol=1e-12
    )
    attribution = jaxlin.attribute(model, x, 7)
    assert max(attribution.defect, attribution.component_defect) <= 1e-12
    assert np.abs(attribution.per_layer).min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"num_kv_shared_layers": 5}, "num_kv_shared_layers.*of its own"),
        ({"hidden_size_per_layer_input": -1}, "hidden_size_per_layer_input.*at least 0"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}}, "rope_parameters"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config.*full layer"),
        ({"enable_moe_block": True, "num_experts": 2, "top_k_experts": 3, "moe_intermediate_size": 4}, "top_k_experts"),
        ({"vocab_size_per_layer_input": 100}, "embed_tokens_per_layer"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    change: dict[str, Any], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for file in checkpoint(NAME).iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(jaxlin.JaxlinError, match=message):
        jaxlin.load(tmp_path)


@pytest.mark.usefixtures("uncompiled_plans")
def test_both_dialects_of_the_heads_of_full_layers(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    config = json.loads((checkpoint("gemma4_text, k = v") / "config.json").read_text())
    del config["per_layer_config"]
    plan = jaxlin.memory_plan({**config, "global_head_dim": 32, "num_global_key_value_heads": 1}, tokens=4)
    assert plan == jaxlin.memory_plan(checkpoint("gemma4_text, k = v"), tokens=4)
