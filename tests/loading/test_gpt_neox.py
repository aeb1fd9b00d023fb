"""Files of GPT-NeoX as they stand on the hub, of transformers 4 and 5."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxlin
from jaxlin.common.errors import CheckpointError, ConfigError

Checkpoint = Callable[[str], Path]


def changed(source: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, folder)
    tensors = change(dict(load_file(source / "model.safetensors")))
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


def assert_same_model(folder: Path, other: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, jaxlin.load(folder)[0], jaxlin.load(other)[0])


def test_masks_of_old_files(checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each layer of Pythia's first files has a causal mask, the value at masked places, and rotary frequencies."""

    def with_buffers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for layer in range(4):
            attention = f"gpt_neox.layers.{layer}.attention"
            tensors[f"{attention}.bias"] = np.tril(np.ones((1, 1, 64, 64), np.bool_))
            tensors[f"{attention}.masked_bias"] = np.array(-1e9, np.float32)
            tensors[f"{attention}.rotary_emb.inv_freq"] = np.ones(2, np.float32)
        return tensors

    source = checkpoint("gpt_neox")
    folder = changed(source, tmp_path / "old", with_buffers)
    assert_same_model(folder, source)
    assert "left out 8 tensors *.attention.bias, *.attention.masked_bias" in caplog.text


def test_without_prefix(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A file saved from the class without a head; and one with the unembedding's name in transformers 5."""
    source = checkpoint("gpt_neox")
    bare = changed(
        source, tmp_path / "bare", lambda t: {k.removeprefix("gpt_neox."): v for k, v in t.items() if "out" not in k}
    )
    model, _ = jaxlin.load(bare)
    assert model.lm_head is None
    jax.tree.map(np.testing.assert_array_equal, model.layers, jaxlin.load(source)[0].layers)
    renamed = changed(source, tmp_path / "new", lambda t: {k.replace("embed_out", "lm_head"): v for k, v in t.items()})
    assert_same_model(renamed, source)


def test_a_fused_tensor_of_another_size(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = "gpt_neox.layers.2.attention.query_key_value.weight"
    folder = changed(checkpoint("gpt_neox"), tmp_path / "short", lambda t: {**t, name: t[name][:-16]})
    with pytest.raises(CheckpointError, match=rf"{name}: expected shape \(192, 64\); found \(176, 64\)"):
        jaxlin.load(folder)


def test_heads_that_do_not_divide(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = changed(checkpoint("gpt_neox"), tmp_path / "odd", lambda t: t)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    with pytest.raises(ConfigError, match="a whole number"):
        jaxlin.load(folder)
