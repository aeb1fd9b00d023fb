"""Checkpoints of gpt-oss: experts in MXFP4, sinks, and what of a config is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest
import tiny
import torch
from mxfp4_files import pack_experts

import jaxlin
from jaxlin.common.errors import ConfigError
from jaxlin.quantized import MXFP4

Checkpoint = Callable[[str], Path]


@pytest.mark.usefixtures("uncompiled_plans")
def test_mxfp4(checkpoint: Checkpoint, tmp_path: Path, x64: None) -> None:
    """The logits, and the rows of the map, of the values that transformers decodes; the memory plan is that of both."""
    folder = pack_experts(checkpoint("gpt_oss, wide"), tmp_path / "packed")
    model, _ = jaxlin.load(folder, dtype="float64")
    assert isinstance(model.layers.mlp.experts.down_proj.weight.get_value(), MXFP4)
    x = model.embed(tiny.IDS)
    logits = model.unembed(jax.jit(lambda model, x: model(x))(model, x))
    expected = oracle.logits(folder / "values", tiny.IDS, torch.float64)
    np.testing.assert_allclose(logits, expected, atol=1e-10)
    u = np.random.default_rng(0).normal(size=(2, 64))
    lmap, rows = jaxlin.local_map(model, x), oracle.frozen_rows(folder / "values", tiny.IDS, -1, u).rows
    for ours in (lmap.T @ u, np.einsum("ro,otd->rtd", u, lmap.jacobian())):
        np.testing.assert_allclose(ours, rows, atol=1e-10 * np.abs(rows).max())
    assert lmap.residual <= 1e-13
    for path in (folder, folder / "values"):
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(jaxlin.load(path)[0]))
        assert jaxlin.memory_plan(path, tokens=8).weights == weights


def test_rows_that_sum_to_less_than_one(checkpoint: Checkpoint) -> None:
    """A sink takes a part of the attention, and the larger its score, the more."""
    model, _ = jaxlin.load(checkpoint("gpt_oss"))
    sums = jaxlin.freeze(model, model.embed(tiny.IDS)).layers["self_attn.pattern"].probabilities.sum(-1)
    assert sums.max() < 1
    assert sums.min() < 0.9
    louder = jax.tree.map(lambda a: a, model)
    louder.layers.self_attn.sinks = jax.tree.map(lambda a: a + 3, model.layers.self_attn.sinks)
    quieter = jaxlin.freeze(louder, model.embed(tiny.IDS)).layers["self_attn.pattern"].probabilities.sum(-1)
    assert (quieter[0] < sums[0]).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_experts_per_tok": 5}, "num_experts_per_tok.*at most 4"),
        ({"swiglu_limit": 1.0}, "swiglu_limit.*above 1"),
        ({"num_experts": 8}, "expected one number of experts"),
        ({"sliding_window": None}, "sliding_window.*some layers slide"),
    ],
)
def test_configs_that_are_refused(
    keys: dict[str, object], message: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("gpt_oss"), tmp_path / "gpt_oss"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    with pytest.raises(ConfigError, match=message):
        jaxlin.load(folder)
