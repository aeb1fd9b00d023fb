"""Tiny random checkpoints of every variant, written by transformers as on the hub, with every parameter drawn."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers.models.timm_wrapper import modeling_timm_wrapper

# The vision half of Gemma 3n is a model of another library, through which no text passes.
modeling_timm_wrapper.requires_backends = lambda *args: None
modeling_timm_wrapper._create_timm_model_with_error_handling = lambda config, **options: torch.nn.Linear(2, 2)

BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA: dict[str, Any] = {**BASE, "num_key_value_heads": 2}
IDS = [5, 17, 99, 3, 64, 3, 120, 8, 41, 77, 12, 100, 33, 6, 91, 54, 2, 19, 110, 27]
"""Twenty tokens: longer than the windows."""


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """`rope_parameters` of config.json."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


def longrope(features: int, **parameters: Any) -> dict[str, Any]:
    """`rope_parameters` with two tables for heads that rotate `features` pairs."""
    short, long = [1 + 0.05 * i for i in range(features)], [1 + 0.5 * i for i in range(features)]
    return rope("longrope", short_factor=short, long_factor=long, **parameters)


@dataclass(frozen=True)
class Variant:
    """One row of the parity table.

    Attributes:
        config: the name of transformers' config class; the model class follows from it.
        options: the arguments that differ from its defaults.
        tokens: the length of the prompt.
        stored: the dtype on disk.
        shards: whether the weights are split into shards.
        rewrite: changes config.json after it is saved.
        biases: whether its text half has additive biases, so that b is not zero.
        seed: of the parameters; another one where a router of the first is in two minds (`margins.router_margin`), or
            where the logits of transformers in float32 alone are about as far as the bar from those in float64.
    """

    config: str
    options: dict[str, Any]
    tokens: int = 20
    stored: torch.dtype = torch.float32
    shards: bool = False
    rewrite: Callable[[dict[str, Any]], None] | None = field(default=None, compare=False)
    biases: bool = False
    seed: int = 0


def old_dialect(config: dict[str, Any]) -> None:
    """config.json as transformers 4 wrote it."""
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = {"type": parameters.pop("rope_type"), **parameters}
    config["torch_dtype"] = config.pop("dtype")


def pythia(config: dict[str, Any]) -> None:
    """config.json as Pythia's files have it, with a base and a rotated share of their own names."""
    parameters = config.pop("rope_parameters")
    config |= {"rotary_emb_base": int(parameters["rope_theta"]), "rotary_pct": parameters["partial_rotary_factor"]}
    config["torch_dtype"] = config.pop("dtype")


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
NESTED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
OLMO3 = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
    "full_attention": {"rope_type": "yarn", "rope_theta": 5e5, **YARN, "attention_factor": 1.2, "beta_fast": 32},
}
GEMMA4: dict[str, Any] = {
    **{**GQA, "num_hidden_layers": 5, "head_dim": 16, "global_head_dim": 32, "sliding_window": 6},
    **{"final_logit_softcapping": 5.0, "hidden_size_per_layer_input": 0},
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
K_EQ_V = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
GEMMA4_EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
GEMMA4_TOKENS = {"image_token_id": 121, "video_token_id": 122, "audio_token_id": 123}
PER_LAYER: dict[str, Any] = {
    **GEMMA4,
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128, "use_double_wide_mlp": True},
    **{"num_hidden_layers": 6, "num_kv_shared_layers": 2, "final_logit_softcapping": 4.0},
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
GEMMA3N: dict[str, Any] = {
    **{**GQA, "head_dim": 16, "sliding_window": 6, "intermediate_size": [96, 96, 64, 64], "num_kv_shared_layers": 2},
    **{
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0],
    },
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128, "laurel_rank": 8},
    "final_logit_softcapping": 5.0,
}
GEMMA = {**GQA, "head_dim": 32, "sliding_window": 6, "query_pre_attn_scalar": 24}
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
MEDIA = {
    "vision_config": {
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 28, "crop_size": 28},
    },
    "audio_config": {
        **{"hidden_size": 32, "intermediate_size": 48, "num_blocks": 2, "num_attention_heads": 2},
        **{"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32},
    },
    "original_max_position_embeddings": 32,
}
GPT_OSS = {
    **{**GQA, "head_dim": 16, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
    "sliding_window": 6,
}
GLIMMER = {"out_hidden_size": 128, "projector_hidden_size": 32}
GLIMMER_VISION = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"patch_size": 14, "pos_emb_height": 4, "pos_emb_width": 4},
}
GPT2 = {**{key: BASE[key] for key in BASE if key != "intermediate_size"}, "max_position_embeddings": 96}
QWEN_VISION = {"depth": 1, "num_heads": 2, "patch_size": 14}
MROPE = rope("default", mrope_section=[2, 3, 3])
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
NARROW = {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24}
LOCAL = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24}

LLAMA4 = {
    **{**GQA, "head_dim": 16, "intermediate_size": 48, "intermediate_size_mlp": 96, "num_local_experts": 4},
    **{"attention_chunk_size": 8, "floor_scale": 4},
}
LLAMA4_VISION = {
    **{"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
    **{"patch_size": 14, "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
}
LATENT = {
    **{**BASE, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2},
    **{"n_group": 2, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8},
    **{"qk_nope_head_dim": 8, "v_head_dim": 12, "routed_scaling_factor": 1.5},
}
MSCALE = {"factor": 8.0, "original_max_position_embeddings": 4, "mscale_all_dim": 1.0, "mscale": 1.0}
MISTRAL4 = {**LATENT, "intermediate_size": 48, **rope("yarn", **MSCALE, llama_4_scaling_beta=0.1)}
DELTA_NET = {
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "linear_conv_kernel_dim": 4,
}
HYBRID: dict[str, Any] = {
    **{**GQA, **DELTA_NET, "head_dim": 32},
    # Where the query of a first token is about orthogonal to its key, the norm of the head divides by almost zero: with
    # an epsilon of 1e-6 the rounding of float32, in both libraries, would be a thousandth of the logits.
    "rms_norm_eps": 1e-2,
    **rope("default", mrope_section=[2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25),
}
HYBRID_MOE: dict[str, Any] = {
    **{key: HYBRID[key] for key in HYBRID if key != "intermediate_size"},
    **{**MOE, "shared_expert_intermediate_size": 24},
}
HYBRID_NEXT: dict[str, Any] = {
    **{**GQA, **DELTA_NET, **MOE, "shared_expert_intermediate_size": 24, "head_dim": 32},
    **{"rms_norm_eps": HYBRID["rms_norm_eps"], "partial_rotary_factor": 0.25},
}
OLMO_HYBRID: dict[str, Any] = {
    **{**GQA, **DELTA_NET},
    **{"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
}

VARIANTS: dict[str, Variant] = {
    "llama": Variant("LlamaConfig", GQA),
    "llama, MHA": Variant("LlamaConfig", BASE),
    "llama, MQA": Variant("LlamaConfig", {**BASE, "num_key_value_heads": 1}),
    "llama, head_dim": Variant("LlamaConfig", {**GQA, "head_dim": 32}),
    "llama, tied": Variant("LlamaConfig", {**GQA, "tie_word_embeddings": True}),
    "llama, biases": Variant("LlamaConfig", {**GQA, "attention_bias": True, "mlp_bias": True}, biases=True),
    "llama, rope linear": Variant("LlamaConfig", {**GQA, **rope("linear", factor=4.0)}),
    "llama, rope dynamic": Variant("LlamaConfig", {**GQA, **rope("dynamic", factor=4.0)}),
    "llama, rope dynamic, long": Variant("LlamaConfig", {**GQA, **rope("dynamic", factor=4.0)}, tokens=80),
    "llama, rope yarn": Variant("LlamaConfig", {**GQA, **rope("yarn", **YARN)}),
    "llama, rope yarn, mscale": Variant(
        "LlamaConfig", {**GQA, **rope("yarn", **YARN, mscale=0.7, mscale_all_dim=0.9, beta_fast=16.0, truncate=False)}
    ),
    "llama, rope yarn, factor": Variant(
        "LlamaConfig", {**GQA, **rope("yarn", **YARN, attention_factor=1.3, beta_fast=8.0, beta_slow=2.0)}
    ),
    "llama, rope llama3": Variant("LlamaConfig", {**GQA, **LLAMA3}),
    "llama, rope llama3, old": Variant("LlamaConfig", {**GQA, **LLAMA3}, rewrite=old_dialect),
    "llama, bfloat16": Variant("LlamaConfig", GQA, stored=torch.bfloat16),
    "llama, float16": Variant("LlamaConfig", GQA, stored=torch.float16),
    "llama, shards": Variant("LlamaConfig", GQA, shards=True),
    "smollm3": Variant("SmolLM3Config", GQA),
    "gemma": Variant("GemmaConfig", {**GQA, "head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": Variant("Gemma2Config", GEMMA),
    "vaultgemma": Variant("VaultGemmaConfig", GEMMA),
    "gemma3_text": Variant("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7, "rope_parameters": NESTED}),
    "gemma3": Variant(
        "Gemma3Config",
        {
            "text_config": {**GEMMA, "model_type": "gemma3_text", "num_hidden_layers": 7},
            "vision_config": SIGLIP,
            **{"mm_tokens_per_image": 4, "image_token_index": 121, "boi_token_index": 122, "eoi_token_index": 123},
        },
    ),
    "gemma3n_text": Variant("Gemma3nTextConfig", GEMMA3N),
    "gemma3n": Variant(
        "Gemma3nConfig",
        {
            "text_config": GEMMA3N,
            "vision_config": {"hidden_size": 32, "vocab_size": 2, "vocab_offset": 128, "label_names": ["any"]},
            "audio_config": {
                **{"hidden_size": 32, "vocab_size": 2, "vocab_offset": 130, "sscp_conv_channel_size": [8, 4]},
                **{"conf_num_attention_heads": 2, "conf_num_hidden_layers": 1},
            },
            **{"image_token_id": 121, "audio_token_id": 122},
        },
    ),
    "gemma4_text": Variant("Gemma4TextConfig", GEMMA4),
    "gemma4_text, k = v": Variant("Gemma4TextConfig", {**GEMMA4, **K_EQ_V}, seed=3),
    "gemma4_text, experts": Variant(
        "Gemma4TextConfig",
        {
            **{**GEMMA4, **K_EQ_V, **GEMMA4_EXPERTS, "num_hidden_layers": 4},
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        seed=1,
    ),
    "gemma4": Variant(
        "Gemma4Config", {"text_config": GEMMA4, **GEMMA4_TOKENS, "vision_config": None, "audio_config": None}
    ),
    "gemma4_unified": Variant(
        "Gemma4UnifiedConfig", {"text_config": GEMMA4, **GEMMA4_TOKENS, "vision_config": None, "audio_config": None}
    ),
    "gemma4_unified_text": Variant("Gemma4UnifiedTextConfig", GEMMA4),
    "gemma4_text, per layer": Variant("Gemma4TextConfig", PER_LAYER, seed=3),
    "gemma4_text, uniform": Variant(
        "Gemma4TextConfig", {**GEMMA4, **K_EQ_V, "layer_types": ["full_attention"] * 5}, seed=2
    ),
    "qwen2": Variant("Qwen2Config", GQA, biases=True),
    "qwen2, window": Variant(
        "Qwen2Config",
        {**GQA, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
        biases=True,
    ),
    "qwen3": Variant("Qwen3Config", {**GQA, "head_dim": 32}),
    "qwen3, tied": Variant("Qwen3Config", {**GQA, "head_dim": 32, "tie_word_embeddings": True}, seed=3),
    "qwen3, R1-0528": Variant("Qwen3Config", {**GQA, "head_dim": 32, **rope("yarn", **YARN, attn_factor=0.8782)}),
    "qwen2_vl": Variant(
        "Qwen2VLConfig",
        {
            "text_config": {**GQA, **MROPE},
            "vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        },
        biases=True,
    ),
    "qwen2_5_vl": Variant(
        "Qwen2_5_VLConfig",
        {
            "text_config": {**GQA, **MROPE, "tie_word_embeddings": True},
            "vision_config": {**QWEN_VISION, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64},
        },
        biases=True,
    ),
    "qwen3_vl": Variant(
        "Qwen3VLConfig",
        {
            "text_config": {
                **{**GQA, "head_dim": 32},
                **rope("default", mrope_section=[6, 5, 5], mrope_interleaved=True),
            },
            "vision_config": {
                **{**QWEN_VISION, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64},
                **{"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            },
        },
    ),
    "qwen3_5": Variant(
        "Qwen3_5Config",
        {
            "text_config": {**HYBRID, "tie_word_embeddings": True},
            "vision_config": {
                **{**QWEN_VISION, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64},
                **{"num_position_embeddings": 16},
            },
        },
        seed=1,
    ),
    "qwen3_5_text": Variant(
        "Qwen3_5TextConfig",
        {
            **{**HYBRID, "attention_bias": True, "max_position_embeddings": 128},
            **{"num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]},
        },
        tokens=70,
        biases=True,
    ),
    "qwen3_5_text, interval": Variant(
        "Qwen3_5TextConfig", {**HYBRID, "num_hidden_layers": 5, "full_attention_interval": 2}
    ),
    "qwen3_5_moe": Variant(
        "Qwen3_5MoeConfig",
        {
            "text_config": {**HYBRID_MOE, "num_hidden_layers": 3, "full_attention_interval": 3},
            "vision_config": {
                **{**QWEN_VISION, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64},
                **{"num_position_embeddings": 16},
            },
        },
        seed=1,
    ),
    "qwen3_5_moe_text": Variant("Qwen3_5MoeTextConfig", {**HYBRID_MOE, "tie_word_embeddings": False}, seed=4),
    "qwen3_next": Variant("Qwen3NextConfig", {**HYBRID_NEXT, "tie_word_embeddings": False}),
    "qwen3_next, dense layers": Variant(
        "Qwen3NextConfig",
        {
            **{**HYBRID_NEXT, "num_hidden_layers": 2, "full_attention_interval": 2, "mlp_only_layers": [0]},
            **{"norm_topk_prob": False, "attention_bias": True, "linear_num_key_heads": 4},
            "max_position_embeddings": 128,
        },
        tokens=70,
        biases=True,
        seed=3,
    ),
    "phi3": Variant("Phi3Config", GQA),
    "phi3, longrope, short": Variant(
        "Phi3Config",
        {**GQA, "original_max_position_embeddings": 32, "sliding_window": 6, **longrope(6, partial_rotary_factor=0.75)},
    ),
    "phi3, longrope, long": Variant(
        "Phi3Config",
        {**GQA, "original_max_position_embeddings": 32, "tie_word_embeddings": True, **longrope(8)},
        tokens=40,
        seed=2,
    ),
    "phi4_multimodal": Variant("Phi4MultimodalConfig", {**GQA, **MEDIA, **longrope(6, partial_rotary_factor=0.75)}),
    "phi": Variant("PhiConfig", BASE, biases=True),
    "phi, qk_layernorm": Variant(
        "PhiConfig", {**BASE, "qk_layernorm": True, "partial_rotary_factor": 0.25}, biases=True
    ),
    "mistral": Variant("MistralConfig", {**GQA, "head_dim": 32, "sliding_window": None}),
    "mistral, window": Variant("MistralConfig", {**GQA, "sliding_window": 6}),
    "ministral": Variant(
        "MinistralConfig",
        {**GQA, "head_dim": 16, "sliding_window": 6, "layer_types": ["full_attention"] + ["sliding_attention"] * 3},
    ),
    "ministral3": Variant(
        "Ministral3Config",
        {
            **GQA,
            "head_dim": 32,
            **rope(
                "yarn",
                factor=16.0,
                original_max_position_embeddings=4,
                max_position_embeddings=64,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.1,
            ),
        },
    ),
    "mistral3": Variant(
        "Mistral3Config",
        {
            "text_config": {**GQA, "model_type": "mistral", "head_dim": 32, "sliding_window": None},
            "vision_config": PIXTRAL,
            "image_token_index": 121,
        },
    ),
    "llama4_text": Variant("Llama4TextConfig", {**LLAMA4, **rope("default")}),
    "llama4_text, interleaved": Variant("Llama4TextConfig", {**LLAMA4, **LLAMA3, "interleave_moe_layer_step": 2}),
    "llama4_text, top 2": Variant(
        "Llama4TextConfig",
        {**LLAMA4, "num_experts_per_tok": 2, "use_qk_norm": False, "attention_bias": True, "moe_layers": [1, 2]},
        biases=True,
    ),
    "llama4": Variant("Llama4Config", {"text_config": LLAMA4, "vision_config": LLAMA4_VISION}),
    "mistral4": Variant("Mistral4Config", {**MISTRAL4, "first_k_dense_replace": 1}),
    "mistral4, direct queries": Variant(
        "Mistral4Config", {**MISTRAL4, "q_lora_rank": None, "norm_topk_prob": False, "num_hidden_layers": 3}, seed=3
    ),
    "mistral3, mistral4": Variant(
        "Mistral3Config",
        {
            "text_config": {**MISTRAL4, "model_type": "mistral4", "norm_topk_prob": False},
            "vision_config": PIXTRAL,
            "image_token_index": 121,
            "tie_word_embeddings": False,
        },
    ),
    "deepseek_v3": Variant("DeepseekV3Config", {**LATENT, "first_k_dense_replace": 1}, seed=1),
    "deepseek_v3, Moonlight": Variant(
        "DeepseekV3Config",
        {**LATENT, "first_k_dense_replace": 1, "q_lora_rank": None, "n_group": 1},
    ),
    "deepseek_v3, biases": Variant(
        "DeepseekV3Config",
        {**LATENT, **rope("yarn", **MSCALE), "attention_bias": True, "rope_interleave": False, "n_shared_experts": 2},
        biases=True,
    ),
    "olmo": Variant("OlmoConfig", GQA),
    "olmo, clip_qkv": Variant("OlmoConfig", {**GQA, "clip_qkv": 0.5}),
    "olmo2": Variant("Olmo2Config", GQA),
    "olmo3": Variant("Olmo3Config", {**GQA, "sliding_window": 6, "rope_parameters": OLMO3}),
    "olmo_hybrid": Variant("OlmoHybridConfig", {**OLMO_HYBRID, "rope_parameters": {"rope_theta": None}}, seed=3),
    "olmo_hybrid, rotated": Variant(
        "OlmoHybridConfig",
        {
            **{**OLMO_HYBRID, "layer_types": ["full_attention", "linear_attention"]},
            # As many channels of keys as of values, so that what transformers writes is what the hub has.
            **{"linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4},
            "linear_allow_neg_eigval": False,
            **{"attention_bias": True, "max_position_embeddings": 128, **rope("default")},
        },
        tokens=70,
        biases=True,
    ),
    "gpt_oss": Variant("GptOssConfig", GPT_OSS, biases=True),
    "gpt_oss, clipped": Variant(
        "GptOssConfig", {**GPT_OSS, **rope("default"), "swiglu_limit": 1.25, "swiglu_alpha": 1.3}, biases=True
    ),
    "muse_glimmer": Variant(
        "MuseGlimmerConfig",
        {"text_config": {**GQA, "head_dim": 32, "sliding_window": 6}, "vision_config": GLIMMER_VISION, **GLIMMER},
    ),
    "muse_glimmer, biases": Variant(
        "MuseGlimmerConfig",
        {
            "text_config": {
                **{**GQA, "head_dim": 16, "attention_bias": True, "layer_types": ["sliding_attention"] * 4},
                **{"sliding_window": 6, "layer_rope_theta": [0, 1, 1, 0], "qk_scale_factor": 2.0},
                **{"output_multiplier": 0.5, "final_logit_softcapping": 9.0, "post_norm_eps": 1e-3},
            },
            "vision_config": GLIMMER_VISION,
            "tie_word_embeddings": True,
            **GLIMMER,
        },
        biases=True,
    ),
    "gpt2": Variant("GPT2Config", GPT2, biases=True),
    "gpt2, scales": Variant(
        "GPT2Config",
        {**GPT2, "n_inner": 96, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        biases=True,
    ),
    "gpt2, untied": Variant("GPT2Config", {**GPT2, "tie_word_embeddings": False}, stored=torch.bfloat16, biases=True),
    "qwen3_moe": Variant("Qwen3MoeConfig", {**GQA, **MOE, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3_moe, dense layers": Variant(
        "Qwen3MoeConfig",
        {**GQA, **MOE, "attention_bias": True, "mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 6},
        biases=True,
    ),
    "qwen2_moe": Variant(
        "Qwen2MoeConfig",
        {
            **{**GQA, **MOE, "shared_expert_intermediate_size": 24},
            **{"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3},
        },
        biases=True,
    ),
    "qwen2_moe, dense layers": Variant(
        "Qwen2MoeConfig",
        {
            **{**GQA, **MOE, "shared_expert_intermediate_size": 24},
            **{"decoder_sparse_step": 2, "norm_topk_prob": True, "qkv_bias": False},
        },
    ),
    "mixtral": Variant("MixtralConfig", {**GQA, **LOCAL, "head_dim": 32, "sliding_window": 6}),
    "olmoe": Variant("OlmoeConfig", {**GQA, **NARROW}),
    "olmoe, clip_qkv": Variant(
        "OlmoeConfig", {**GQA, **NARROW, "clip_qkv": 0.8, "attention_bias": True, "norm_topk_prob": True}, biases=True
    ),
    "flex_olmo": Variant("FlexOlmoConfig", {**GQA, **NARROW}),
    "phimoe": Variant(
        "PhimoeConfig",
        {
            **{**GQA, **LOCAL, "attention_bias": True, "lm_head_bias": True, "sliding_window": 6},
            **longrope(8, short_mscale=1.243, long_mscale=1.5, original_max_position_embeddings=32),
            "original_max_position_embeddings": 32,
        },
        biases=True,
    ),
    "phimoe, jitter": Variant("PhimoeConfig", {**GQA, **LOCAL, "router_jitter_noise": 0.2}, biases=True),
    "gpt_neox": Variant("GPTNeoXConfig", BASE, biases=True),
    "gpt_neox, sequential": Variant(
        "GPTNeoXConfig", {**BASE, "use_parallel_residual": False, "hidden_act": "gelu_new"}, biases=True
    ),
    "gpt_neox, Pythia": Variant("GPTNeoXConfig", {**BASE, "tie_word_embeddings": True}, biases=True, rewrite=pythia),
}

SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
WIDE: dict[str, Variant] = {
    "llama, wide": Variant("LlamaConfig", {**GQA, **SIZES}),
    "phi3, wide": Variant("Phi3Config", {**GQA, **SIZES}),
    "gpt_oss, wide": Variant("GptOssConfig", {**GPT_OSS, "intermediate_size": 64, "num_hidden_layers": 2}, biases=True),
    "gpt2, wide": Variant("GPT2Config", {**GPT2, "hidden_size": 128, "num_hidden_layers": 2}, biases=True),
    "gpt_neox, wide": Variant("GPTNeoXConfig", {**BASE, **SIZES, "attention_bias": False}, biases=True),
}
"""Variants whose rows are whole blocks of 64 values, for quantised weights."""


def ids_of(variant: Variant) -> list[int]:
    """The prompt of a variant."""
    return (IDS * 4)[: variant.tokens]


def build(variant: Variant, folder: Path) -> Path:
    """Write a random checkpoint with a tokenizer, and return its folder."""
    config = getattr(transformers, variant.config)(**variant.options)
    wrapper = hasattr(config, "vision_config")
    name = variant.config.removesuffix("Config").removesuffix("Text")
    wrapper &= hasattr(transformers, f"{name}ForConditionalGeneration")
    name += "ForConditionalGeneration" if wrapper else "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager")
    randomise(model, variant.seed)
    size = "60KB" if variant.shards else "1GB"
    if variant.stored is not torch.float32:  # a cast, even to its own dtype, is refused where a buffer is complex
        model.to(variant.stored)
    model.save_pretrained(folder, max_shard_size=size)
    if variant.rewrite:
        path = folder / "config.json"
        written = json.loads(path.read_text())
        variant.rewrite(written)
        path.write_text(json.dumps(written))
    write_tokenizer(folder)
    return folder


def built_once(variants: Mapping[str, Variant], new_folder: Callable[[], Path]) -> Callable[[str], Path]:
    """A function from the name of a variant to the folder of its checkpoint, which the first call with it writes."""
    return functools.cache(lambda name: build(variants[name], new_folder()))


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter, and every buffer that is stored.

    With norms of one, biases of zero and routers that prefer no expert, a wrong mapping of names would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    stored = set(model.state_dict())
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if name not in stored or not parameter.is_floating_point():
                continue
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith("A_log"):  # of decays that forget some tokens and remember others
                parameter.copy_(torch.log(0.1 + 3.9 * torch.special.ndtr(drawn)))
            elif name.endswith(("dt_bias", "sinks", "e_score_correction_bias")):  # which 0.2 would hardly show
                parameter.copy_(DRAWN_WIDE[name.rsplit(".", 1)[-1]] * drawn)
            elif parameter.ndim == 1:
                parameter.add_(0.2 * drawn)
            elif parameter is head is not embedding:  # logits of order 5, of which a float32 is well within 2e-5
                parameter.copy_(0.2 * drawn)
            elif "embed" in name:
                parameter.copy_(0.4 * drawn)
            else:
                parameter.copy_(drawn / parameter.shape[-1] ** 0.5)


DRAWN_WIDE = {"dt_bias": 1.0, "sinks": 1.0, "e_score_correction_bias": 0.3}
"""The standard deviation of vectors that are drawn wider than others."""


def write_tokenizer(folder: Path, size: int = 128) -> None:
    """Write a tokenizer of single characters."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(29 + i): i for i in range(3, size)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
