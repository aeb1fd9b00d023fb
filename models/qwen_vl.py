r"""The text halves of Qwen 2, 2.5 and 3-VL: Qwen 2 and Qwen 3 under the names of their multimodal wrappers.

"Qwen2-VL", 2024; "Qwen2.5-VL Technical Report", 2025; "Qwen3-VL Technical Report", 2025. Their rotary positions have
three axes, time, height and width, each of which turns a section of the pairs of a head. A token of text has the same
position on all three, which is the plain rope.
"""

from typing import Any

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.qwen import Qwen2, Qwen3, QwenConfig, sliding_numbers
from jaxlin.porting.fields import decoder_numbers, rope_of
from jaxlin.porting.port import Port

SECTIONS = ("mrope_section", "mrope_interleaved")
"""The keys that say which pairs turn with which axis: for text they make no difference."""


def text_half(json: ConfigReader) -> ConfigReader:
    """The config of the text half: under ``text_config``, or in older files beside the wrapper's own keys.

    The wrapper ties where it says so, or where its text half does.
    """
    json.leave_out("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    json.leave_out("vision_token_id")
    tied = json.take("tie_word_embeddings", bool, False)
    text = json
    if json.peek("text_config") is not None:
        text = json.part("text_config")
        tied = text.take("tie_word_embeddings", bool, False) or tied
        # Files of transformers 4.50 and on repeat the text half's keys beside it, where no one reads them.
        json.leave_out(*(key for key in TEXT_KEYS if key not in ("tie_word_embeddings", "quantization_config")))
    text.override("tie_word_embeddings", tied)
    for dialect in ("rope_scaling", "rope_parameters"):
        if isinstance(parameters := text.peek(dialect), dict):
            text.override(dialect, _without_sections(parameters))
    return text


TEXT_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "use_sliding_window", "sliding_window", "max_window_layers", "layer_types",
)  # fmt: skip


def _without_sections(parameters: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters without the keys of the axes, which older files give as a kind of rope."""
    plain = {key: value for key, value in parameters.items() if key not in SECTIONS}
    return {key: value for key, value in plain.items() if not (key in ("type", "rope_type") and value == "mrope")}


def qwen2_vl_config(json: ConfigReader) -> QwenConfig:
    """The config of the text half of Qwen 2-VL and 2.5-VL."""
    defaults = {"num_key_value_heads": 8, "norm_eps": 1e-5}
    return QwenConfig(**sliding_numbers(text_half(json), theta=1e6, full_layers=80, **defaults))


def qwen3_vl_config(json: ConfigReader) -> QwenConfig:
    """The config of the text half of Qwen 3-VL, whose layers never slide."""
    text = text_half(json)
    numbers = decoder_numbers(text, head_dim=128, num_key_value_heads=32, max_position_embeddings=128_000)
    depth, length = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    rope = rope_of(text, numbers["head_dim"], length, theta=5e5)
    bias = text.take("attention_bias", bool, False)
    return QwenConfig(**numbers, ropes=(rope,) * depth, windows=(None,) * depth, attention_bias=bias)


VISION = {f"{body}visual.*": "the vision half of the model" for body in ("", "model.")}
BODIES = ("model.language_model.", "model.", "language_model.")
"""Where Qwen 2 and 2.5-VL keep their text half: today, before transformers 4.52, and saved without a head."""

PORTS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), Port(Qwen2, qwen2_vl_config, bodies=BODIES, left_out=VISION)),
    "qwen3_vl": Port(Qwen3, qwen3_vl_config, bodies=("model.language_model.", "language_model."), left_out=VISION),
}
