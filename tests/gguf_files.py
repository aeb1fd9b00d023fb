"""GGUF files of tiny checkpoints, written as llama.cpp's converter writes them, with the names of the gguf library."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf_parts import put_together, taken_apart, with_gates_among, with_gates_apart
from safetensors.numpy import load_file, save_file

PERMUTED = ("llama", "smollm3", "mistral3", "olmo")
"""Architectures whose converters permute the rows of queries and keys."""

HYBRIDS = ("qwen35", "qwen35moe", "qwen3next")
"""Architectures with layers of a gated delta rule."""

NUMBERED = re.compile(r"(\.experts|\.altup(?:_unembed)?_projections)\.\d+")
UNNUMBERED = re.compile(r"(\.experts(?=\.(?:\w+_proj|w[123])\.)|\.altup(?:_unembed)?_projections)\.")
"""Modules of which there are several with numbers, whose tensors the converter stacks."""

TRANSPOSED = (".c_attn.weight", ".c_fc.weight", ".c_proj.weight")
"""The endings of the names of GPT-2's tensors that its converter transposes."""

SCALES = {".router.scale": "ffn_gate_inp.scale", ".router.per_expert_scale": "ffn_down_exps.scale"}
"""The endings of the names of tensors of Gemma 4 that the gguf library does not name."""

KEYS_OF_GPT2 = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}

Config = dict[str, Any]
Kinds = Callable[[str], str]


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows with the two halves of each head interleaved, as `LlamaModel.permute` of the converter does."""
    return np.ascontiguousarray(rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape))


def regrouped(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows that stand head by head, first all of the queries, then the keys, then the values, as GPT-NeoX's does."""
    return np.ascontiguousarray(rows.reshape(heads, 3, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape))


def of_hybrid(name: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """A tensor of a hybrid of Qwen as its converter writes it: rates and most norms are shifted, value heads are tiled.

    Qwen3-Next's value heads stay as they are.
    """
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    group = config["linear_num_value_heads"] // config["linear_num_key_heads"]

    def tiled(rows: np.ndarray) -> np.ndarray:
        if config["model_type"] == "qwen3_next":
            return rows
        by_head = rows.reshape(config["linear_num_key_heads"], group, -1, *rows.shape[1:])
        return np.ascontiguousarray(by_head.swapaxes(0, 1).reshape(rows.shape))

    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        return np.concatenate([values[: 2 * keys], tiled(values[2 * keys :])])
    if name.endswith("out_proj.weight"):
        return np.ascontiguousarray(tiled(values.T).T)
    if name.endswith("A_log"):
        return tiled(-np.exp(values))
    if name.endswith(("in_proj_z.weight", "in_proj_a.weight", "in_proj_b.weight", "dt_bias")):
        return tiled(values)
    return values + 1 if name.endswith("norm.weight") and "linear_attn" not in name else values


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """The bytes of a matrix in the format `kind`. K-quants, which the library cannot quantise, are drawn at random."""
    if values.ndim > 2:
        return packed(values.reshape(-1, values.shape[-1]), kind).reshape(*values.shape[:-1], -1)
    if kind not in ("Q4_K", "Q6_K"):
        return gguf.quantize(values, gguf.GGMLQuantizationType[kind])
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    draw = np.random.default_rng(values.size)
    raw = draw.integers(0, 256, (len(values), values.shape[1] // block, size), np.uint8)
    scales = slice(0, 4) if kind == "Q4_K" else slice(size - 2, size)
    drawn = draw.uniform(5e-5, 1.5e-4, (*raw.shape[:2], 2 if kind == "Q4_K" else 1)).astype(np.float16)
    raw[..., scales] = drawn.view(np.uint8)
    return raw.reshape(len(values), -1)


def write(
    path: Path,
    source: Path,
    arch: str,
    kinds: Kinds = lambda name: "F32",
    extra: Mapping[str, np.ndarray] | None = None,
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    rename: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda tensors: tensors,
    split: int = 0,
    joint: bool = False,
) -> Path:
    """Write the checkpoint `source` as a GGUF file, and return the folder of a checkpoint with the values in that file.

    Args:
        path: the file to write.
        source: the folder of the checkpoint.
        arch: ``general.architecture``.
        kinds: gives the type of a matrix from its Hugging Face name.
        extra: tensors to add.
        change: adds metadata.
        rename: changes the tensors under ggml's names.
        split: the most tensors in one file of several; 0 for a single file.
        joint: whether keys and values of a latent are in one tensor, as in files before 2025.
    """
    config = json.loads((source / "config.json").read_text())
    config |= {usual: config[own] for usual, own in KEYS_OF_GPT2.items() if own in config}
    model = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    name_of = gguf.get_tensor_name_map(model, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    if joint:
        latent(writer, config, joint=True)
    else:
        METADATA[arch](writer, config)
    vocabulary(writer, config["vocab_size"])
    change(writer)
    exact, tensors, stored = {}, {}, with_gates_apart(load_file(source / "model.safetensors"), config)
    for hf, values in with_stacked_experts(taken_apart(stored, arch, config, joint=joint)).items():
        with_kind = hf.endswith(("_output_scale", "layer_scalar"))
        of_ggml = f"{hf}.weight" if with_kind else hf.replace(".dt_bias", ".dt_proj.bias")
        scale = next((f"blk.{hf.split('.')[2]}.{part}" for name, part in SCALES.items() if hf.endswith(name)), None)
        ggml = scale or name_of.get_name(of_ggml, try_suffixes=(".weight", ".bias"))
        assert ggml is not None, hf
        shape, values = values.shape, np.atleast_1d(values.squeeze())  # as the converter does
        kind = kinds(hf) if values.ndim > 1 else "F32"
        values = np.ascontiguousarray(values.T) if hf.endswith(TRANSPOSED) else values
        if arch in ("gemma", "gemma2", "gemma3") and hf.endswith("norm.weight"):
            values = values + 1
            exact[hf] = values - 1
        elif kind == "F32":
            exact[hf] = values if values.ndim == len(shape) else values.reshape(shape)
        else:
            values = packed(values, kind)
            exact[hf] = gguf.dequantize(values, gguf.GGMLQuantizationType[kind])
        exact[hf] = np.ascontiguousarray(exact[hf].T) if hf.endswith(TRANSPOSED) else exact[hf]
        if arch in PERMUTED and (".q_proj." in hf or ".k_proj." in hf):
            values = permuted(values, config["num_attention_heads" if ".q_proj." in hf else "num_key_value_heads"])
        if arch in HYBRIDS:
            if hf.endswith("A_log"):
                exact[hf] = np.log(np.exp(values))
            elif hf.endswith("norm.weight") and "linear_attn" not in hf:
                exact[hf] = values + 1 - 1
            values = of_hybrid(hf, values, config)
        if arch == "gptneox" and ".query_key_value." in hf:
            values = regrouped(values, config["num_attention_heads"])
        tensors[ggml] = (values, kind)
    for name, values in rename({name: values for name, (values, _) in tensors.items()}).items():
        kind = tensors[name][1] if name in tensors else kinds(name) if values.dtype == np.uint8 else "F32"
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind] if kind != "F32" else None)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    folder = path.with_suffix("")
    shutil.copytree(source, folder)
    together = with_gates_among(with_single_experts(put_together(exact, arch)), config)
    save_file(together, folder / "model.safetensors", {"format": "pt"})
    return folder


def with_stacked_experts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with those of all experts of a layer in one, ``[E, out, in]``, as the converter merges them."""
    merged: dict[str, list[np.ndarray]] = {}
    for name in sorted(tensors, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")]):
        merged.setdefault(NUMBERED.sub(r"\1", name), []).append(tensors[name])
    return {name: np.stack(parts) if len(parts) > 1 else parts[0] for name, parts in merged.items()}


def with_single_experts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as transformers writes most of them: each expert's in its own."""
    apart = {}
    for name, values in tensors.items():
        each = {UNNUMBERED.sub(rf"\g<0>{e}.", name): part for e, part in enumerate(values)}
        apart |= each if UNNUMBERED.search(name) else {name: values}
    return {name: np.ascontiguousarray(values) for name, values in apart.items()}


def vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A byte-level BPE of `size` tokens, one of them merged."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = [chr(256 + i) for i in range(size - 1)]
    writer.add_token_list([*letters, letters[0] + letters[1]])
    writer.add_token_types([1] * size)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])


def _rope(config: Config) -> dict[str, Any]:
    parameters = config.get("rope_parameters") or {}
    return parameters.get("full_attention", parameters)


def _sizes(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    if "intermediate_size" in config:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])


def _head_dim(writer: gguf.GGUFWriter, config: Config) -> None:
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def base(writer: gguf.GGUFWriter, config: Config) -> None:
    """The metadata that the converter writes for most models."""
    _sizes(writer, config)
    rope = _rope(config)
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key, add in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key) is not None:
                add(rope[key])
        factor = rope.get("attention_factor", rope.get("attn_factor"))
        if factor is not None:
            writer.add_rope_scaling_yarn_attn_factor(factor)
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    local = (config.get("rope_parameters") or {}).get("sliding_attention")
    if local:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _head_dim(writer, config)
    writer.add_file_type(0)


def llama(writer: gguf.GGUFWriter, config: Config) -> None:
    """Llama, and models converted as Llama is."""
    base(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def mistral3(writer: gguf.GGUFWriter, config: Config) -> None:
    """Mistral 3 and Ministral 3."""
    llama(writer, config)
    if config["model_type"] == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(config["rope_parameters"]["mscale_all_dim"])
        writer.add_attn_temperature_scale(config["rope_parameters"]["llama_4_scaling_beta"])


def moe(writer: gguf.GGUFWriter, config: Config) -> None:
    """Qwen's and AllenAI's mixtures of experts; OLMoE's experts have the `intermediate_size`."""
    base(writer, config)
    writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    for key, add in (
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length),
    ):
        if key in config:
            add(config[key])


def llama4(writer: gguf.GGUFWriter, config: Config) -> None:
    """Llama 4, whose `intermediate_size` is that of experts."""
    llama(writer, {**config, "intermediate_size": config["intermediate_size_mlp"]})
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])


def mixtral(writer: gguf.GGUFWriter, config: Config) -> None:
    """Mixtral, whose architecture is that of Llama; models without experts too."""
    llama(writer, config)
    if "num_local_experts" in config:
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])


def gemma(writer: gguf.GGUFWriter, config: Config) -> None:
    """Gemma 1, and 2 with its softcaps and its window."""
    _sizes(writer, config)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _head_dim(writer, config)
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        writer.add_sliding_window(config["sliding_window"])


def gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    """Gemma 3."""
    base(writer, config)
    writer.add_sliding_window(config["sliding_window"])


def gemma3n(writer: gguf.GGUFWriter, config: Config) -> None:
    """Gemma 3n."""
    gemma3(writer, config)
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_altup_active_idx(config["altup_active_idx"])
    writer.add_altup_num_inputs(config["altup_num_inputs"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    normal, shares = torch.distributions.normal.Normal(0, 1), config["activation_sparsity_pattern"]
    writer.add_activation_sparsity_scale([normal.icdf(torch.tensor(share)).item() for share in shares])
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])


def gemma4(writer: gguf.GGUFWriter, config: Config) -> None:
    """Gemma 4, whose files have what full layers have under the keys of other models."""
    types, depth, shared = config["layer_types"], config["num_hidden_layers"], config["num_kv_shared_layers"]
    full = {"head_dim": config["head_dim"], **config["per_layer_config"][str(depth - 1)]}
    width, sliding = config["intermediate_size"], config["head_dim"]
    doubled = [width] * (depth - shared) + [2 * width] * shared
    usual = config["num_key_value_heads"]
    listed = [usual if kind == "sliding_attention" else full.get("num_key_value_heads") for kind in types]
    sizes = {
        **{"intermediate_size": doubled if config["use_double_wide_mlp"] else width, "head_dim": full["head_dim"]},
        "num_key_value_heads": listed if config["attention_k_eq_v"] else usual,
    }
    gemma3(writer, {**config, **sizes})
    writer.add_key_length_swa(sliding)
    writer.add_value_length_swa(sliding)
    writer.add_rope_dimension_count(full["head_dim"])
    writer.add_rope_dimension_count_swa(sliding)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in types])
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if config["enable_moe_block"]:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["top_k_experts"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    rotated = int(full["head_dim"] * config["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    divisors = np.repeat(np.array([1, 1e30], np.float32), [rotated, full["head_dim"] // 2 - rotated])
    writer.add_tensor("rope_freqs.weight", divisors)


def phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    """Phi-3 and 4."""
    rope, width = config["rope_parameters"], config["hidden_size"]
    _sizes(writer, config)
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    share = rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(share * width) // config["num_attention_heads"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config.get("sliding_window") or 0)
    if "long_factor" in rope:
        length, original = config["max_position_embeddings"], config["original_max_position_embeddings"]
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(length / original) / np.log(original))))
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))


def phi2(writer: gguf.GGUFWriter, config: Config) -> None:
    """Phi-1, 1.5 and 2."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    _sizes(writer, {**config, "intermediate_size": 4 * width, "num_key_value_heads": heads})
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_rope_dimension_count(int(config["rope_parameters"]["partial_rotary_factor"] * width) // heads)


def gpt2(writer: gguf.GGUFWriter, config: Config) -> None:
    """GPT-2."""
    width = config["hidden_size"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(4 * width)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def gptneox(writer: gguf.GGUFWriter, config: Config) -> None:
    """GPT-NeoX and Pythia."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(int(config["rope_parameters"]["partial_rotary_factor"] * (width // heads)))
    writer.add_head_count(heads)
    writer.add_parallel_residual(config["use_parallel_residual"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])


def olmo(writer: gguf.GGUFWriter, config: Config) -> None:
    """OLMo 1."""
    base(writer, config)
    writer.add_layer_norm_eps(1e-5)
    if config.get("clip_qkv") is not None:
        writer.add_clamp_kqv(config["clip_qkv"])


def olmo2(writer: gguf.GGUFWriter, config: Config) -> None:
    """OLMo 2 and 3."""
    base(writer, config)
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])


def hybrid(writer: gguf.GGUFWriter, config: Config) -> None:
    """Qwen's hybrids, with experts or without; Qwen 3.5's rotary positions have sections."""
    (moe if "num_experts" in config else base)(writer, config)
    heads, rope = config["linear_num_value_heads"], config["rope_parameters"]
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_inner_size(heads * config["linear_value_head_dim"])
    writer.add_full_attention_interval(config["layer_types"].index("full_attention") + 1)
    writer.add_rope_dimension_count(int(config["head_dim"] * rope["partial_rotary_factor"]))
    if "mrope_section" in rope:
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])


def gpt_oss(writer: gguf.GGUFWriter, config: Config) -> None:
    """gpt-oss."""
    base(writer, config)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def latent(writer: gguf.GGUFWriter, config: Config, *, joint: bool = False) -> None:
    """DeepSeek V3 and Mistral 4; in files whose keys and values are `joint` lengths are those of a head."""
    heads, rotated, rank = (config[key] for key in ("num_attention_heads", "qk_rope_head_dim", "kv_lora_rank"))
    lengths = config["qk_nope_head_dim"] + rotated, config["v_head_dim"]
    base(writer, {**config, "num_key_value_heads": heads if joint else 1, "head_dim": None})
    writer.add_key_length(lengths[0] if joint else rank + rotated)
    writer.add_value_length(lengths[1] if joint else rank)
    if not joint:
        writer.add_key_length_mla(lengths[0])
        writer.add_value_length_mla(lengths[1])
    writer.add_rope_dimension_count(rotated)
    writer.add_kv_lora_rank(rank)
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_vocab_size(config["vocab_size"])
    for key, add in (
        ("n_routed_experts", writer.add_expert_count),
        ("num_experts_per_tok", writer.add_expert_used_count),
        ("n_shared_experts", writer.add_expert_shared_count),
        ("n_group", writer.add_expert_group_count),
        ("topk_group", writer.add_expert_group_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("routed_scaling_factor", writer.add_expert_weights_scale),
    ):
        add(config[key])
    if config["norm_topk_prob"]:
        writer.add_expert_weights_norm(True)
    if config["model_type"] == "deepseek_v3":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if "mscale_all_dim" in config["rope_parameters"]:
        writer.add_rope_scaling_yarn_log_mul(0.1 * config["rope_parameters"]["mscale_all_dim"])


METADATA: dict[str, Callable[[gguf.GGUFWriter, Config], None]] = {
    **{"llama": mixtral, "smollm3": llama, "mistral3": mistral3, "gemma": gemma, "gemma2": gemma, "gemma3": gemma3},
    **{"qwen2": base, "qwen3": base, "phi3": phi3, "phi2": phi2, "olmo": olmo, "olmo2": olmo2},
    **dict.fromkeys(("qwen2moe", "qwen3moe", "olmoe"), moe),
    **{
        "gemma3n": gemma3n,
        "gemma4": gemma4,
        "llama4": llama4,
        "gptneox": gptneox,
        "gpt2": gpt2,
        **dict.fromkeys(HYBRIDS, hybrid),
    },
    **{"gpt-oss": gpt_oss, "deepseek2": latent, "mistral4": latent},
}
"""The metadata that the converter of each architecture writes."""
