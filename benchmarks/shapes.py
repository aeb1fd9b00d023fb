"""Models of known shapes with random weights, drawn on the device that computes with them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxlin
from jaxlin.loading.shapes import abstract_model
from jaxlin.quantized import BFloat16, FourBit

LLAMA_3B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "dtype": "bfloat16",
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
QWEN_8B: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False,
    "dtype": "bfloat16",
}  # fmt: skip
GEMMA_12B: dict[str, Any] = {
    "model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208,
    "max_position_embeddings": 131072, "sliding_window": 1024, "query_pre_attn_scalar": 256, "dtype": "bfloat16",
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}  # fmt: skip
LLAMA_70B: dict[str, Any] = {
    **LLAMA_3B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "tie_word_embeddings": False, "rope_parameters": {**LLAMA_3B["rope_parameters"], "factor": 8.0},
}  # fmt: skip
NF4: dict[str, Any] = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}  # fmt: skip
"""The `quantization_config` of a checkpoint in 4 bits with double quantisation."""
LARGE = {"Llama-3.2-3B": LLAMA_3B, "Qwen3-8B": QWEN_8B, "Gemma-3-12B": GEMMA_12B}
QWEN_35_4B: dict[str, Any] = {
    "model_type": "qwen3_5_text", "hidden_size": 2560, "intermediate_size": 9216, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "full_attention_interval": 4, "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}, "dtype": "bfloat16",
}  # fmt: skip
QWEN_30B_A3B: dict[str, Any] = {
    **QWEN_8B, "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
}  # fmt: skip
UNLIKE = {"Qwen3.5-4B": QWEN_35_4B, "Qwen3-30B-A3B": QWEN_30B_A3B}
"""A hybrid, and a mixture of experts."""


ONE_IS_ADDED = ("gemma", "qwen3_5", "qwen3_next")
"""How the names of types begin that add one to the weights of norms, but for those of the heads of a delta rule."""
LEVELS = np.linspace(-1, 1, 16, dtype=np.float32)
"""Sixteen values that stand for those of NF4."""


def tiny(d: int = 64, layers: int = 2, dtype: str = "float32") -> dict[str, Any]:
    """The config.json of a small Llama, `d` features wide."""
    return {
        "model_type": "llama", "hidden_size": d, "intermediate_size": 3 * d, "num_hidden_layers": layers,
        "num_attention_heads": d // 32, "num_key_value_heads": d // 32, "vocab_size": 128, "dtype": dtype,
        "max_position_embeddings": 4096,
    }  # fmt: skip


def random_model(config: dict[str, Any], seed: int = 0) -> jaxlin.Decoder:
    """A model of a config.json, with random matrices in the format that it names, computed with in float32.

    Matrices have entries of variance 1 / fan-in; the weights of norms are one, or zero where one is added to them.
    """
    abstract = abstract_model(config, "config", "float32", "gate")
    located, structure = jax.tree.flatten_with_path(abstract, is_leaf=lambda node: isinstance(node, BFloat16 | FourBit))
    one_is_added = config["model_type"].startswith(ONE_IS_ADDED)

    def value(path: Any, part: Any, key: jax.Array) -> Any:
        if isinstance(part, FourBit):
            return _four_bit(key, part)
        if isinstance(part, BFloat16):
            return BFloat16(jax.lax.bitcast_convert_type(_drawn(key, part.shape, jnp.bfloat16), jnp.uint16))
        matrix = part.ndim == 3 or part.shape[0] == config["vocab_size"]
        norm = 0.0 if one_is_added and "o_norm" not in jax.tree_util.keystr(path) else 1.0
        return _drawn(key, part.shape, part.dtype) if matrix else jnp.full(part.shape, norm, part.dtype)

    keys = jax.random.split(jax.random.key(seed), len(located))
    # One program a matrix, and each awaited: the random bits of several would take more than the model.
    drawn = [
        jax.block_until_ready(jax.jit(lambda key, path=path, part=part: value(path, part, key))(key))
        for (path, part), key in zip(located, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _four_bit(key: jax.Array, part: FourBit) -> FourBit:
    """Random codes; all blocks have one scale, which is the offset of the nested scales."""
    scale = part.codes.shape[-1] ** -0.5 / LEVELS.std()
    rest = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), part)
    nested = part.nested and dataclasses.replace(
        rest.nested,
        offset=jnp.full(part.nested.offset.shape, scale),
        row=jnp.broadcast_to(jnp.arange(part.nested.row.shape[-1], dtype=jnp.int32), part.nested.row.shape),
    )
    return dataclasses.replace(
        rest,
        codes=_by_layer(key, part.codes.shape, lambda key, shape: jax.random.bits(key, shape, jnp.uint8)),
        absmax=rest.absmax if nested else jnp.full(part.absmax.shape, scale),
        table=jnp.broadcast_to(jnp.asarray(LEVELS), part.table.shape),
        nested=nested,
    )


def _drawn(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Random matrices of variance 1 / fan-in."""
    scale = shape[-1] ** -0.5
    return _by_layer(key, shape, lambda key, shape: scale * jax.random.normal(key, shape, dtype))


def _by_layer(
    key: jax.Array, shape: tuple[int, ...], draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]
) -> jax.Array:
    """A random matrix, or a stack whose matrices are drawn one at a time, which takes a fraction of the memory."""
    stack = (1, *shape) if len(shape) == 2 else shape
    return jax.lax.map(lambda key: draw(key, stack[1:]), jax.random.split(key, stack[0])).reshape(shape)
