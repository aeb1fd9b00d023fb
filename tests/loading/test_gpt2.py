"""Files of GPT-2 as they stand on the hub: without a prefix, with masks in them; and its learned positions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

import jaxlin
from jaxlin.common.errors import CheckpointError, ConfigError
from jaxlin.nn.prompt import PromptError

Checkpoint = Callable[[str], Path]


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of a tiny GPT-2, to be changed."""
    return Path(shutil.copytree(checkpoint("gpt2"), tmp_path / "gpt2"))


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    path = folder / "model.safetensors"
    tensors = change(dict(load_file(path)))
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path)


def edit(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_the_file_of_openai_community(folder: Path, checkpoint: Checkpoint) -> None:
    """Its tensors have no prefix, and each layer has a mask."""

    def as_on_the_hub(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        bare = {name.removeprefix("transformer."): values for name, values in tensors.items()}
        mask = np.tril(np.ones((1, 1, 96, 96), np.float32))
        return bare | {f"h.{layer}.attn.bias": mask for layer in range(4)}

    rewrite(folder, as_on_the_hub)
    ours, expected = jaxlin.load(folder)[0], jaxlin.load(checkpoint("gpt2"))[0]
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_positions(checkpoint: Checkpoint) -> None:
    """The embeddings of a continuation begin at its position, and the table has one row for each."""
    model, _ = jaxlin.load(checkpoint("gpt2"))
    x, ids = model.embed(tiny.IDS), jnp.asarray(tiny.IDS)
    np.testing.assert_array_equal(model.embed(ids[7:9], 7), x[7:9])
    np.testing.assert_array_equal(jax.jit(lambda ids, i: model.embed(ids[None, 0], i))(ids[7:], 7), x[7:8])
    assert np.abs(model.embed([5, 5])[0] - model.embed([5, 5])[1]).max() > 0.1
    moved = model.moved_embeddings(x[3:5], jnp.array([3, 4]), jnp.array([0, 1]))
    np.testing.assert_allclose(moved, model.embed(tiny.IDS[3:5]), atol=1e-6)
    with pytest.raises(PromptError, match="at most 96 tokens"):
        model.embed([1] * 97)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_head": 5}, "n_head.*a number of heads"),
        ({"n_head": 64}, "n_head.*even number of features"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"hidden_size": 32}, "hidden_size.*expected 64"),
        ({"activation_function": "prelu"}, "activation_function"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
    ],
)
def test_configs_that_are_refused(keys: dict[str, object], message: str, folder: Path) -> None:
    edit(folder, **keys)
    with pytest.raises(ConfigError, match=message):
        jaxlin.load(folder)


def test_a_weight_that_is_not_transposed(folder: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    rewrite(folder, lambda tensors: {**tensors, name: tensors[name].T})
    with pytest.raises(CheckpointError, match=rf"{name}: expected shape \(64, 256\); found \(256, 64\)"):
        jaxlin.load(folder)
