r"""Qwen 3.5 and later, without experts: the blocks of `jaxlin.models.qwen_hybrid`, three of a delta rule to one other.

Covers the text half of the dense models from Qwen 3.5 on. Rotary positions have three axes, on all of which a token of
text has the same position: see `jaxlin.models.qwen_vl`.
"""

from typing import Any

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.qwen_hybrid import DRAFTS, QwenHybrid, QwenHybridConfig, hybrid_names, hybrid_numbers
from jaxlin.models.qwen_vl import SECTIONS, VISION
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort
from jaxlin.porting.hybrid_fields import DELTA_NET_KEYS, DELTA_NET_PARTS, DELTA_NET_VALUES, hybrid_keys
from jaxlin.porting.port import Port


def qwen3_5_numbers(json: ConfigReader, *, num_key_value_heads: int = 4, **width: Any) -> dict[str, Any]:
    """The fields of the config, with experts or without."""
    # Written in files, and read by no version of transformers.
    json.leave_out("attn_output_gate", "output_gate_type", "mlp_only_layers", "mamba_ssm_dtype")
    json.leave_out("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    options: dict[str, Any] = {"vocab_size": 248320, "rope_extra": SECTIONS}
    return hybrid_numbers(json, num_key_value_heads=num_key_value_heads, **options, **width)


def qwen3_5_text_config(json: ConfigReader) -> QwenHybridConfig:
    """The config of the text model alone."""
    return QwenHybridConfig(**qwen3_5_numbers(json))


def text_half(json: ConfigReader) -> ConfigReader:
    """The config of the text half of a wrapper, which alone says whether the unembedding is tied."""
    json.leave_out("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = json.part("text_config")
    text.override("tie_word_embeddings", json.take("tie_word_embeddings", bool, False))
    return text


def qwen3_5_config(json: ConfigReader) -> QwenHybridConfig:
    """The config of the text half of the wrapper."""
    return qwen3_5_text_config(text_half(json))


OPTIONS: dict[str, Any] = {
    "names": hybrid_names,
    "bodies": ("model.language_model.", "model."),
    "left_out": {**VISION, **DRAFTS},
}

PORTS = {
    "qwen3_5": Port(QwenHybrid, qwen3_5_config, **OPTIONS),
    "qwen3_5_text": Port(QwenHybrid, qwen3_5_text_config, **OPTIONS),
}

HYBRID_GGUF = GGUFPort(
    model_type="qwen3_5_text",
    keys={**RMS_NORM, **DELTA_NET_KEYS, "full_attention_interval": "full_attention_interval"},
    read=("ssm.inner_size", "rope.dimension_sections"),
    parts=DELTA_NET_PARTS,
    flags={"attention_bias": "self_attn.q_proj.bias"},
    derive=hybrid_keys,
    values=DELTA_NET_VALUES,
    partial=True,
)
GGUF = {"qwen35": HYBRID_GGUF}
