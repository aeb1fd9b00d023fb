"""The variants that are also written as GGUF files: each architecture, and each kind of packed matrix."""

from collections.abc import Callable

import numpy as np
import tiny

GEMMA = {**tiny.GEMMA, "query_pre_attn_scalar": 32}
NESTED = {**tiny.OLMO3, "full_attention": {**tiny.OLMO3["full_attention"], "attention_factor": 1 + 0.1 * np.log(4)}}
YARN = tiny.rope("yarn", **tiny.YARN)
R1_0528 = tiny.rope("yarn", **tiny.YARN, attn_factor=0.8782488562869419)
PHI2 = {**tiny.BASE, "intermediate_size": 256}

LLAMA4 = {**tiny.LLAMA4, "attention_chunk_size": 8192, "floor_scale": 8192, "interleave_moe_layer_step": 2}
QWEN2_MOE = {**tiny.VARIANTS["qwen2_moe"].options, "use_sliding_window": False}

VARIANTS: dict[str, tuple[str, tiny.Variant]] = {
    "llama": ("llama", tiny.VARIANTS["llama"]),
    "llama, head_dim": ("llama", tiny.VARIANTS["llama, head_dim"]),
    "llama, tied": ("llama", tiny.VARIANTS["llama, tied"]),
    "llama, biases": ("llama", tiny.VARIANTS["llama, biases"]),
    "llama, rope linear": ("llama", tiny.VARIANTS["llama, rope linear"]),
    "llama, rope yarn": ("llama", tiny.VARIANTS["llama, rope yarn"]),
    "mistral": ("llama", tiny.VARIANTS["mistral"]),
    "smollm3": ("smollm3", tiny.VARIANTS["smollm3"]),
    "ministral3": ("mistral3", tiny.VARIANTS["ministral3"]),
    "mistral as mistral3": ("mistral3", tiny.VARIANTS["mistral"]),
    "llama4": ("llama4", tiny.Variant("Llama4TextConfig", LLAMA4)),
    "gemma": ("gemma", tiny.VARIANTS["gemma"]),
    "gemma2": ("gemma2", tiny.Variant("Gemma2Config", GEMMA)),
    "gemma2, 27B": (
        "gemma2",
        tiny.Variant("Gemma2Config", {**GEMMA, "num_hidden_layers": 46, "query_pre_attn_scalar": 16}),
    ),
    "gemma3": (
        "gemma3",
        tiny.Variant("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7, "rope_parameters": tiny.NESTED}),
    ),
    "gemma3n": ("gemma3n", tiny.VARIANTS["gemma3n_text"]),
    "gemma4": ("gemma4", tiny.VARIANTS["gemma4_text"]),
    "gemma4, experts": ("gemma4", tiny.VARIANTS["gemma4_text, experts"]),
    "gemma4, per layer": ("gemma4", tiny.VARIANTS["gemma4_text, per layer"]),
    "qwen2": ("qwen2", tiny.VARIANTS["qwen2"]),
    "qwen2, yarn": ("qwen2", tiny.Variant("Qwen2Config", {**tiny.GQA, **YARN})),
    "qwen3": ("qwen3", tiny.VARIANTS["qwen3"]),
    "qwen3, tied": ("qwen3", tiny.VARIANTS["qwen3, tied"]),
    "qwen3, R1-0528": ("qwen3", tiny.Variant("Qwen3Config", {**tiny.GQA, "head_dim": 32, **R1_0528})),
    "qwen3_5": ("qwen35", tiny.VARIANTS["qwen3_5_text, interval"]),
    "qwen3_5_moe": ("qwen35moe", tiny.VARIANTS["qwen3_5_moe_text"]),
    "qwen3_next": ("qwen3next", tiny.VARIANTS["qwen3_next"]),
    "phi3": ("phi3", tiny.VARIANTS["phi3"]),
    "phi3, longrope, short": ("phi3", tiny.VARIANTS["phi3, longrope, short"]),
    "phi3, longrope, long": ("phi3", tiny.VARIANTS["phi3, longrope, long"]),
    "phi2": ("phi2", tiny.Variant("PhiConfig", PHI2)),
    "olmo": ("olmo", tiny.VARIANTS["olmo"]),
    "olmo, clip_qkv": ("olmo", tiny.VARIANTS["olmo, clip_qkv"]),
    "olmo2": ("olmo2", tiny.VARIANTS["olmo2"]),
    "olmo3": ("olmo2", tiny.Variant("Olmo3Config", {**tiny.VARIANTS["olmo3"].options, "rope_parameters": NESTED})),
    "qwen3_moe": ("qwen3moe", tiny.VARIANTS["qwen3_moe"]),
    "qwen2_moe": ("qwen2moe", tiny.Variant("Qwen2MoeConfig", {**QWEN2_MOE, "norm_topk_prob": False})),
    "olmoe": ("olmoe", tiny.Variant("OlmoeConfig", {**tiny.VARIANTS["olmoe"].options, "clip_qkv": None})),
    "mixtral": ("llama", tiny.Variant("MixtralConfig", {**tiny.VARIANTS["mixtral"].options, "sliding_window": None})),
    "gpt_oss": ("gpt-oss", tiny.VARIANTS["gpt_oss"]),
    "deepseek_v3": ("deepseek2", tiny.VARIANTS["deepseek_v3"]),
    "deepseek_v3, Moonlight": ("deepseek2", tiny.VARIANTS["deepseek_v3, Moonlight"]),
    "mistral4": ("mistral4", tiny.VARIANTS["mistral4"]),
    "gpt2": ("gpt2", tiny.VARIANTS["gpt2"]),
    "gpt_neox": ("gptneox", tiny.VARIANTS["gpt_neox"]),
    "gpt_neox, sequential": ("gptneox", tiny.Variant("GPTNeoXConfig", {**tiny.BASE, "use_parallel_residual": False})),
}
"""``general.architecture`` and the checkpoint that is written."""

FIRST = set({arch: name for name, (arch, _) in reversed(VARIANTS.items())}.values())
"""The first variant of each architecture."""

LATENT_OF_BLOCKS = {
    **{"q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32},
    **{"moe_intermediate_size": 64, "first_k_dense_replace": 1},
}
WIDE = {**tiny.GQA, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
GEMMA4_OF_BLOCKS = {"moe_intermediate_size": 32, "head_dim": 32}
HYBRID_KINDS = {"in_proj_qkv": "Q4_1", "in_proj_z": "Q5_1", "out_proj": "Q5_0", "conv1d": "F32"}
"""The types of matrices of the delta rule, whose value heads stand in another order, in rows or in columns."""


def kind_of_hybrid(name: str) -> str:
    """The type of a matrix of a hybrid; of experts, one of the K-quants."""
    if ".experts." in name:
        return "Q4_K"
    return next((kind for part, kind in HYBRID_KINDS.items() if f".{part}." in name), "Q8_0")


PACKED: dict[str, tuple[str, tiny.Variant, Callable[[str], str]]] = {
    "llama, Q8_0": ("llama", tiny.VARIANTS["llama"], lambda name: "Q8_0"),
    "qwen3, Q4_0": ("qwen3", tiny.VARIANTS["qwen3"], lambda name: "Q4_0"),
    "phi3, Q8_0": ("phi3", tiny.VARIANTS["phi3"], lambda name: "Q8_0"),
    "mistral3, BF16": ("mistral3", tiny.VARIANTS["ministral3"], lambda name: "BF16"),
    "llama, mixed": (
        "llama",
        tiny.Variant("LlamaConfig", WIDE),
        lambda name: "Q6_K" if "embed" in name or "v_proj" in name else "Q8_0" if "layers.0" in name else "Q4_K",
    ),
    "gpt2, Q8_0": ("gpt2", tiny.VARIANTS["gpt2"], lambda name: "F32" if "wpe" in name else "Q8_0"),
    "qwen2_moe, mixed": (
        "qwen2moe",
        tiny.Variant(
            "Qwen2MoeConfig",
            {
                **{**QWEN2_MOE, **WIDE, "norm_topk_prob": False},
                **{"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
            },
        ),
        lambda name: "Q6_K" if "0.mlp.experts.down" in name else "Q4_K" if ".experts." in name else "Q8_0",
    ),
    "gpt_oss, MXFP4": (
        "gpt-oss",
        tiny.WIDE["gpt_oss, wide"],
        lambda name: "MXFP4" if name.endswith("_proj.weight") and ".experts." in name else "Q8_0",
    ),
    "deepseek_v3, Q8_0": (
        "deepseek2",
        tiny.Variant("DeepseekV3Config", {**tiny.LATENT, **tiny.SIZES, **LATENT_OF_BLOCKS}),
        lambda name: "Q4_0" if ".experts." in name else "Q8_0",
    ),
    "gemma3n, Q8_0": (
        "gemma3n",
        tiny.VARIANTS["gemma3n_text"],
        lambda name: "Q8_0" if "altup_" in name or "self_attn" in name or "mlp" in name else "F32",
    ),
    "gemma4, mixed": (
        "gemma4",
        tiny.Variant(
            "Gemma4TextConfig", {**tiny.GEMMA4, **tiny.K_EQ_V, **tiny.GEMMA4_EXPERTS, **GEMMA4_OF_BLOCKS}, seed=11
        ),
        lambda name: "Q4_0" if ".experts." in name else "F32" if "router" in name else "Q8_0",
    ),
    "gpt_neox, Q8_0": ("gptneox", tiny.VARIANTS["gpt_neox"], lambda name: "Q8_0"),
    "qwen3_5, mixed": (
        "qwen35",
        tiny.Variant(
            "Qwen3_5TextConfig",
            {**tiny.HYBRID, "num_hidden_layers": 2, "full_attention_interval": 2, "linear_value_head_dim": 32},
        ),
        kind_of_hybrid,
    ),
    "qwen3_next, mixed": (
        "qwen3next",
        tiny.Variant(
            "Qwen3NextConfig",
            {
                **{**tiny.HYBRID_NEXT, **WIDE, "full_attention_interval": 2, "linear_value_head_dim": 64},
                **{"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
            },
        ),
        kind_of_hybrid,
    ),
    "gemma3, mixed": (
        "gemma3",
        tiny.Variant("Gemma3TextConfig", {**GEMMA, **WIDE, "num_hidden_layers": 7}),
        lambda name: "Q8_0" if "v_proj" in name else "Q5_0" if "layers" in name else "Q4_K",
    ),
}
"""``general.architecture``, the checkpoint, and the type of each matrix by its Hugging Face name."""
