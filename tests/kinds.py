"""The variants of `tiny.VARIANTS` that stand for the types of model in the tests of every analysis."""

import tiny
import transformers

KINDS = (
    "llama, biases",
    "gemma2",
    "phi",
    "olmo2",
    "gpt2",
    "gpt_neox",
    "gpt_oss, clipped",
    "muse_glimmer",
    "llama4_text, interleaved",
    "mistral4",
    "qwen3_5_text, interval",
    "qwen3_5_moe_text",
    "qwen3_next",
    "olmo_hybrid",
    "qwen2_moe",
    "gemma3n_text",
    "gemma4_text, experts",
    "gemma4_text, per layer",
    "olmoe, clip_qkv",
    "qwen3_moe, dense layers",
    "phimoe, jitter",
    "deepseek_v3",
    "mixtral",
    "flex_olmo",
)
"""A variant or two of each type whose layers, or routers, are of another kind than those of the others."""

WRAPPERS = ("gemma3", "gemma4", "gemma4_unified", "llama4", "mistral3", "mistral3, mistral4", "qwen3_5", "qwen3_5_moe")
"""Types whose text half is one of the other types."""


def model_type(name: str) -> str:
    """The `model_type` of a variant."""
    return getattr(transformers, tiny.VARIANTS[name].config).model_type


_PLAIN = {model_type(name): name for name in reversed(tiny.VARIANTS)}
_TYPES = {model_type(name) for name in (*KINDS, *WRAPPERS)}

PROVEN = (*KINDS, *(name for kind, name in _PLAIN.items() if kind not in _TYPES), "olmo, clip_qkv")
"""A variant of each type that is no wrapper, two where a type has two kinds, and one with another factor to freeze."""
