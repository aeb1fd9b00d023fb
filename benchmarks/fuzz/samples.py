"""A small valid checkpoint of each kind, from which inputs are derived."""

import copy
import functools
from typing import Any

import jax
import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.loading.parameters import leading_axes, parameter_name
from jaxlin.loading.registry import port_for
from jaxlin.nn.modules import without_values
from jaxlin.nn.stack import layers_at
from jaxlin.porting.tensor_rows import EXPERT

_COMMON: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.5] * 8}
_GEMMA = {
    **_COMMON,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
_LAYER_NORM = {key: value for key, value in _COMMON.items() if key != "rms_norm_eps"}
_TEXT = {key: value for key, value in _COMMON.items() if key != "rope_theta"}


def _named(model_type: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {"model_type": model_type}
    for part in (*parts, more):
        merged |= part
    return merged


CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _named("llama", _COMMON, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama3": _named(
        "llama",
        _COMMON,
        attention_bias=True,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "smollm3": _named("smollm3", _COMMON, no_rope_layers=[1, 0]),
    "gemma": _named("gemma", _GEMMA),
    "gemma2": _named("gemma2", _GEMMA, _SLIDING, query_pre_attn_scalar=16, final_logit_softcapping=30.0),
    "gemma3_text": _named("gemma3_text", _GEMMA, _SLIDING, query_pre_attn_scalar=16, rope_local_base_freq=1e3),
    "qwen2": _named("qwen2", {key: value for key, value in _COMMON.items() if key != "head_dim"}),
    "qwen3": _named("qwen3", _COMMON),
    "llama4_text": _named(
        "llama4_text",
        _COMMON,
        intermediate_size_mlp=48,
        num_local_experts=3,
        num_experts_per_tok=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=8,
    ),
    "phi": _named("phi", _LAYER_NORM, layer_norm_eps=1e-5, partial_rotary_factor=0.5, num_key_value_heads=2),
    "phi3": _named("phi3", _COMMON, rope_scaling=_LONG, original_max_position_embeddings=16),
    "mistral": _named("mistral", _COMMON, sliding_window=4),
    "ministral3": _named(
        "ministral3", _TEXT, rope_parameters={**_YARN, "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}
    ),
    "mistral3": _named("mistral3", text_config=_named("mistral", _COMMON), vision_config={}),
    "olmo": _named("olmo", _LAYER_NORM, clip_qkv=1.0),
    "olmo2": _named("olmo2", _COMMON),
    "olmo3": _named("olmo3", _COMMON, _SLIDING, rope_scaling=_YARN),
}
"""A config.json of each kind of port."""

ROPES = [*_YARN, *_LONG, "low_freq_factor", "high_freq_factor", "mscale", "attention_factor", "rope_parameters"]
OTHERS = ["quantization_config", "text_config", "dtype", "architectures", "is_decoder", "eos_token_id", "mlp_bias"]
KEYS = sorted({*ROPES, *OTHERS, *(key for config in CONFIGS.values() for key in config)})
"""Keys that some port reads."""


@functools.cache
def tensors(name: str) -> dict[str, np.ndarray]:
    """The tensors of the config `name` of `CONFIGS`, as a checkpoint has them."""
    return tensors_of(CONFIGS[name])


def tensors_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random tensors of any valid config."""
    port = port_for(config["model_type"])
    translated = port.translate(ConfigReader(copy.deepcopy(config), "a sample"))
    model = without_values(lambda rngs: port.model(translated, rngs=rngs))
    draw, shapes = np.random.default_rng(0), {}
    for path, array in jax.tree_util.tree_leaves_with_path(model):
        name = parameter_name(path)
        leading = leading_axes(name)
        for place in np.ndindex(array.shape[:leading]):
            layer = layers_at(path, array.shape[0])[place[0]] if place else None
            rows, stored = port.tensor_of(translated, name, layer), array.shape[leading:]
            experts = array.shape[1:leading] if EXPERT not in rows.tensor else ()
            tensor = rows.tensor.replace(EXPERT, str(place[-1] if place else None))
            shapes[tensor] = (*experts, *rows.stored_shape(stored))
    return {
        name: (draw.normal(0, 0.1, shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }
