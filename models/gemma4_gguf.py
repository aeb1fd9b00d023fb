"""GGUF files of Gemma 4."""

from collections.abc import Mapping
from math import nextafter
from typing import Any

from jaxlin.common.printable import quoted
from jaxlin.models.gemma3n_gguf import PER_LAYER_PARTS
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort, sliding_types

NO_ROTATION = 1e30
"""What divides the frequency of two features of a full layer that are not rotated."""


def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The heads, the ropes and the widths of the MLPs, which differ between the kinds of layers.

    Raises:
        ValueError: see `GGUFPort.derive`.
    """
    types = sliding_types(metadata, config, period=6)
    return {
        **types,
        **heads(metadata, config, types["layer_types"]),
        **ropes(metadata, config),
        **widths(config),
        "hidden_size_per_layer_input": config.get("hidden_size_per_layer_input", 0),
    }


def heads(metadata: Mapping[str, Any], config: Mapping[str, Any], types: list[str]) -> dict[str, Any]:
    """The sizes of heads: a file has those of full layers under the keys of other models."""
    full = config["head_dim"]
    sliding = metadata.get("attention.key_length_swa", full)
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if metadata.get(key, sliding) != sliding:
            raise ValueError(f"{key}: expected {sliding}, as attention.key_length_swa; found {quoted(metadata[key])}")
    sizes = {"head_dim": sliding, "global_head_dim": full}
    counts = config.get("num_key_value_heads")
    if not isinstance(counts, list):
        return sizes
    # The converter lists the counts of models in which one projection gives keys and values of full layers.
    by_type = {kind: {n for n, own in zip(counts, types, strict=True) if own == kind} for kind in types}
    if any(len(each) > 1 for each in by_type.values()):
        raise ValueError(f"attention.head_count_kv: expected one number for each kind of layer; found {quoted(counts)}")
    return {
        **sizes,
        "attention_k_eq_v": True,
        "num_key_value_heads": counts[types.index("sliding_attention")] if "sliding_attention" in types else counts[0],
        "num_global_key_value_heads": counts[-1],
    }


def ropes(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `rope_parameters`: in full layers a part of the frequencies is divided by so much that nothing rotates."""
    if "rope_theta" not in config:
        raise ValueError("rope.freq_base: expected the base of full layers; found none")
    divisors = config.get("rope_scaling", {}).get("divisors", [])
    count, half = divisors.count(1.0), config["head_dim"] // 2
    if len(divisors) != half or divisors[:count] != [1.0] * count or min(divisors[count:], default=1e30) < 0.99e30:
        expected = f"rope_freqs.weight with {half} numbers, first ones and then {NO_ROTATION:g}"
        raise ValueError(f"rope.dimension_count: expected a tensor {expected}; found {quoted(divisors, 100)}")
    # The next float above, so that its product with head_dim is not truncated to one feature less.
    share = 1.0 if count == half else nextafter(count / half, 1)
    theta = {"sliding_attention": metadata.get("rope.freq_base_swa", 1e4), "full_attention": config["rope_theta"]}
    return {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": theta["sliding_attention"]},
            "full_attention": {
                **{"rope_type": "proportional", "rope_theta": theta["full_attention"]},
                "partial_rotary_factor": share,
            },
        },
        **dict.fromkeys(("rope_theta", "rope_scaling")),
    }


def widths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The width of MLPs, and whether it is double in the layers that read the values of earlier ones."""
    sizes = config["intermediate_size"]
    if not isinstance(sizes, list):
        return {}
    first, shared = sizes[0], config.get("num_kv_shared_layers", 0)
    if sizes != [first] * (len(sizes) - shared) + [2 * first] * shared:
        expected = f"one width, and its double in the last {shared} layers"
        raise ValueError(f"feed_forward_length: expected {expected}; found {quoted(sizes)}")
    return {"intermediate_size": first, "use_double_wide_mlp": True}


PARTS = {
    **PER_LAYER_PARTS,
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp": "moe.gate",
    "ffn_gate_inp.scale": "moe.gate.scale",
    "ffn_gate_exps": "moe.experts.gate_proj",
    "ffn_up_exps": "moe.experts.up_proj",
    "ffn_gate_up_exps": "moe.experts.gate_up_proj",
    "ffn_down_exps": "moe.experts.down_proj",
    "ffn_down_exps.scale": "moe.gate.per_expert_scale",
}
"""ggml's names; experts have those of the parameters, as each tensor has those of all experts."""

EXPERT_KEYS = {"expert_count": "num_experts", "expert_used_count": "top_k_experts"}

GEMMA4 = GGUFPort(
    model_type="gemma4_text",
    keys={
        **{**RMS_NORM, **EXPERT_KEYS, "expert_feed_forward_length": "moe_intermediate_size"},
        "attention.sliding_window": "sliding_window",
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "final_logit_softcapping": "final_logit_softcapping",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    },
    read=(
        "attention.sliding_window_pattern",
        "attention.key_length_swa",
        "attention.value_length_swa",
        "rope.dimension_count_swa",
        "rope.freq_base_swa",
    ),
    per_layer=("feed_forward_length", "attention.head_count_kv"),
    parts=PARTS,
    flags={"enable_moe_block": "moe.gate.weight"},
    sizes={"vocab_size_per_layer_input": "model.embed_tokens_per_layer.weight"},
    derive=derive,
)
