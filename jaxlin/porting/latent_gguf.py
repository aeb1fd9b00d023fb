"""The keys and names of GGUF files with latent attention and experts in groups: ``deepseek2`` and ``mistral4``."""

from collections.abc import Mapping
from typing import Any

from jaxlin.common.printable import quoted
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort, check_gating, gating_of

KEYS = {
    **RMS_NORM,
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
}

PARTS = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
}
"""Files before 2025 have the keys and values of each head in ``attn_kv_b``, as Hugging Face has them."""

LENGTHS = ("attention.key_length_mla", "attention.value_length_mla")
TEMPERATURE = "attention.temperature_scale"
LOGARITHM = 0.1
"""What the converter multiplies `mscale_all_dim` with: the number before the logarithm in YaRN's factor of scores."""

BETA = 0.1
"""The growth of queries in Mistral 4, which the converter leaves out; llama.cpp's queries then do not grow."""


def sizes(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The features of queries, keys and values of a head.

    In files of today `attention.key_length` and `attention.value_length` are those of the latent, which all heads share
    as if it were the only key; and the lengths of each head have keys of their own.

    Raises:
        ValueError: they contradict each other.
    """
    by_head = any(key in metadata for key in LENGTHS)
    names = LENGTHS if by_head else ("attention.key_length", "attention.value_length")
    lengths: list[Any] = [metadata.get(name) for name in ("rope.dimension_count", *names)]
    rotated, key, value = (length if type(length) is int else 0 for length in lengths)
    if min(rotated, key, value) < 1 or key <= rotated:
        expected = f"lengths under {names[0]} and {names[1]}, the first above rope.dimension_count"
        raise ValueError(f"{names[0]}: expected {expected}; found {quoted(lengths)}")
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    if kv_heads not in (shared := {None, 1 if by_head else heads}):
        raise ValueError(f"attention.head_count_kv: expected {max(shared - {None})}; found {quoted(kv_heads)}")
    return {
        "q_lora_rank": config.get("q_lora_rank") or None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
        "num_key_value_heads": heads,
        "head_dim": None,
    }


def routing(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp computes where a file does not say how its experts are weighted."""
    return {
        "norm_topk_prob": config.get("norm_topk_prob", False),
        "routed_scaling_factor": config.get("routed_scaling_factor", 1.0),
    }


def rope(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope parameters, in which the factor of the scores is stored as a tenth of `mscale_all_dim`."""
    parameters = {"rope_type": "default", **config.get("rope_scaling", {})}
    if "mscale_all_dim" in parameters:
        mscale = float(f"{parameters['mscale_all_dim'] / LOGARITHM:.6g}")
        # Files have one number for two keys, which are equal in every config of these architectures.
        parameters |= {"mscale": mscale, "mscale_all_dim": mscale}
    return {"rope_parameters": parameters, "rope_scaling": None}


def deepseek_keys(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of DeepSeek V3's config.json, or of Mistral 4's, whose own format is converted to this architecture.

    Raises:
        ValueError: the router is that of DeepSeek V2, or the file does not say how experts are grouped.
    """
    if gating_of(metadata) == "softmax" and TEMPERATURE in metadata:
        return mistral_keys(metadata, config)
    if gating_of(metadata) != "sigmoid":
        raise ValueError(
            f"expert_gating_func: expected 2, sigmoid, as in DeepSeek V3 and R1; found "
            f"{quoted(metadata.get('expert_gating_func', 'none'))}, as in DeepSeek V2, which jaxlin has no port for"
        )
    for key in ("expert_group_count", "expert_group_used_count"):
        if key not in metadata:
            raise ValueError(
                f"{key}: expected a number; found none, as in files of older converters, with which llama.cpp chose "
                "experts of any group. Take a newer file, or the model's safetensors"
            )
    return {**sizes(metadata, config), **routing(metadata, config), **rope(metadata, config)}


def mistral_keys(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of Mistral 4's config.json.

    Raises:
        ValueError: queries grow from another position than the trained length, or the router is no softmax.
    """
    check_gating(metadata, "softmax")
    keys = {**sizes(metadata, config), **routing(metadata, config), **rope(metadata, config)}
    parameters = keys["rope_parameters"]
    trained = parameters.get("original_max_position_embeddings")
    if (start := metadata.get("attention.temperature_length", trained)) != trained:
        raise ValueError(f"attention.temperature_length: expected the trained length, {trained}; found {quoted(start)}")
    parameters["llama_4_scaling_beta"] = metadata.get(TEMPERATURE, BETA)
    return {"n_group": 1, "topk_group": 1, **config, **keys, "model_type": "mistral4"}


DEEPSEEK_GGUF = GGUFPort(
    model_type="deepseek_v3",
    keys=KEYS,
    read=("expert_gating_func", TEMPERATURE, "attention.temperature_length", *LENGTHS),
    null=("q_lora_rank",),
    parts=PARTS,
    derive=deepseek_keys,
    by_head={"self_attn.k_b_proj.weight": True, "self_attn.v_b_proj.weight": False},
    latent=True,
)
