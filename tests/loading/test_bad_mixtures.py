"""What a damaged or lying checkpoint of each mixture and hybrid is refused for, before memory is taken."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxlin
from jaxlin.common.errors import CheckpointError, ConfigError, JaxlinError

Checkpoint = Callable[[str], Path]
Tensors = dict[str, np.ndarray]

MIXTURES = ("qwen2_moe", "qwen3_moe", "qwen3_5_moe_text", "mixtral", "olmoe", "flex_olmo", "phimoe", "gpt_oss")
MIXTURES += ("llama4_text", "mistral4", "deepseek_v3", "gemma4_text, experts")
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
CHOSEN = ("num_experts_per_tok", "top_k_experts")
MAX_TAKEN = 2**24
"""Bytes: far less than any of the sizes that the configs claim, and more than the Python objects of a small model."""


def edited(
    source: Path, folder: Path, keys: dict[str, Any], change: Callable[[Tensors], None] = lambda tensors: None
) -> Path:
    """A copy of a checkpoint with other keys and tensors."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return folder


def key_of(source: Path, keys: tuple[str, ...]) -> tuple[str, int]:
    """The one of `keys` that a config has, and its value."""
    config = json.loads((source / "config.json").read_text())
    return next((key, config[key]) for key in keys if key in config)


def refused(folder: Path, error: type[JaxlinError], message: str) -> None:
    """Loading is refused."""
    with pytest.raises(error, match=message):
        jaxlin.load(folder)


def is_of_an_expert(name: str) -> bool:
    """Whether a tensor has the matrix of one expert, or those of all."""
    return ".experts." in name and not name.endswith("bias")


@pytest.mark.parametrize("name", MIXTURES)
def test_numbers_of_experts(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """More chosen than there are; more than the tensors have; more, and wider ones, than any memory holds."""
    source = checkpoint(name)
    (count_key, count), (chosen_key, _) = key_of(source, COUNTS), key_of(source, CHOSEN)
    refused(edited(source, tmp_path / "k", {chosen_key: count + 1}), ConfigError, chosen_key)
    for more in (count + 2, 10**12):
        refused(edited(source, tmp_path / str(more), {count_key: more}), JaxlinError, "expert|gate|router")
    width_key, _ = key_of(source, ("moe_intermediate_size", "intermediate_size"))
    many = edited(source, tmp_path / "wide", {count_key: 2**16, width_key: 2**30})
    tracemalloc.start()
    try:
        refused(many, JaxlinError, "expected shape|expected a tensor")
        assert tracemalloc.get_traced_memory()[1] < MAX_TAKEN
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", MIXTURES)
def test_tensors_of_experts(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One is missing; one has another shape; some layers are in another layout than the others."""
    source = checkpoint(name)
    last = max(filter(is_of_an_expert, load_file(source / "model.safetensors")))

    def without(tensors: Tensors) -> None:
        del tensors[last]

    def smaller(tensors: Tensors) -> None:
        tensors[last] = np.ascontiguousarray(tensors[last][:-1])

    def in_both_layouts(tensors: Tensors) -> None:
        before, _, rest = last.partition(".experts.")
        layer = before.rpartition(".")[0]
        single = "experts.0.gate_proj.weight", "experts.gate_up_proj"
        other = single[1] if rest[0].isdigit() else single[0]
        module = "feed_forward" if name.startswith("llama4") else "mlp"
        tensors[f"{layer}.{module}.{other}"] = np.zeros((4, 4), np.float32)

    refused(edited(source, tmp_path / "without", {}, without), CheckpointError, "expected a tensor .*found none")
    refused(edited(source, tmp_path / "smaller", {}, smaller), CheckpointError, "experts.*expected shape")
    message = "in one layout; found some as|expected only tensors that the model has"
    refused(edited(source, tmp_path / "both", {}, in_both_layouts), CheckpointError, message)


LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("qwen3_5_text, interval", {"layer_types": [FULL, LINEAR, LINEAR, LINEAR, FULL]}),
        ("qwen3_5_text, interval", {"layer_types": None, "full_attention_interval": 5}),
        ("qwen3_5_moe_text", {"layer_types": [FULL, LINEAR, LINEAR, LINEAR]}),
        ("gemma4_text, k = v", {"layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL]}),
        ("gemma4_text, per layer", {"num_kv_shared_layers": 0}),
        ("llama4_text, interleaved", {"moe_layers": [0, 2]}),
        ("deepseek_v3", {"first_k_dense_replace": 2}),
        ("mistral4", {"first_k_dense_replace": 0}),
        ("qwen3_moe, dense layers", {"mlp_only_layers": [1]}),
        ("qwen2_moe, dense layers", {"decoder_sparse_step": 4}),
    ],
)
def test_kinds_of_layers_that_the_tensors_contradict(
    name: str, keys: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    refused(edited(checkpoint(name), tmp_path / "any", keys), JaxlinError, "layers.[0-9]|per_layer_config")


def test_ids_that_the_table_of_per_layer_embeddings_lacks(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The vocabulary may have more tokens than that table."""

    def fewer(tensors: Tensors) -> None:
        table = next(name for name in tensors if name.endswith("embed_tokens_per_layer.weight"))
        tensors[table] = np.ascontiguousarray(tensors[table][:100])

    keys = {"vocab_size_per_layer_input": 100}
    model, _ = jaxlin.load(edited(checkpoint("gemma4_text, per layer"), tmp_path / "any", keys, fewer))
    assert model.embed([5, 99]).shape == (2, 64)
    for ids in ([5, 100], [127], [-1]):
        with pytest.raises(JaxlinError, match=r"token ids in 0\.\.(99|127)"):
            model.embed(ids)
