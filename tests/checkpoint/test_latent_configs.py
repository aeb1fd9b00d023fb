"""Configs of latent attention, experts in groups and chunks that contradict themselves are refused by name."""

import json
from typing import Any

import pytest
import tiny
import transformers

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import ConfigError
from jaxlin.loading.registry import port_for

YARN = tiny.VARIANTS["mistral4"].options["rope_parameters"]


def translated(name: str, changes: dict[str, Any]) -> Any:
    variant = tiny.VARIANTS[name]
    config = json.loads(getattr(transformers, variant.config)(**variant.options).to_json_string(use_diff=False))
    reader = ConfigReader({**config, **changes}, "config.json")
    return port_for(config["model_type"]).translate(reader)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads.*num_attention_heads"),
        ("deepseek_v3", {"n_group": 3}, "n_group.*divisor of n_routed_experts"),
        ("deepseek_v3", {"n_group": 8}, "n_group.*2 or more in each"),
        ("deepseek_v3", {"topk_group": 3}, "topk_group.*at most n_group"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, "num_experts_per_tok.*at most 4"),
        ("deepseek_v3", {"head_dim": 16}, "head_dim.*8"),
        ("deepseek_v3", {"qk_rope_head_dim": 7, "head_dim": None, "qk_head_dim": None}, "head_dim.*even"),
        ("mistral4", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters.*yarn"),
        ("mistral4", {"rope_parameters": {**YARN, "llama_4_scaling_beta": None}}, "llama_4_scaling_beta"),
        ("mistral4", {"rope_parameters": {**YARN, "partial_rotary_factor": 0.25}}, "partial_rotary_factor of 8"),
        ("llama4_text", {"num_experts_per_tok": 5}, "num_experts_per_tok.*at most 4"),
        ("llama4_text", {"attention_chunk_size": None}, "attention_chunk_size.*some layers have chunks"),
        ("llama4_text", {"layer_types": ["sliding_attention"] * 4}, "full_attention or chunked_attention"),
        ("llama4_text", {"no_rope_layers": [1, 1, 2, 0]}, "no_rope_layers.*0 or 1"),
    ],
)
def test_refused(name: str, changes: dict[str, Any], message: str) -> None:
    translated(name, {})
    with pytest.raises(ConfigError, match=message):
        translated(name, changes)


def test_layers_of_llama4() -> None:
    """Experts in every other layer, chunks where a layer rotates, and the sizes of both kinds of MLP."""
    config = translated("llama4_text, interleaved", {})
    assert config.layer_kinds == ("dense", "experts") * 2
    assert config.chunks == (8, 8, 8, None)
    assert (config.intermediate_size, config.moe_intermediate_size) == (96, 48)
    assert translated("llama4_text, interleaved", {"no_rope_layers": []}).chunks == config.chunks
