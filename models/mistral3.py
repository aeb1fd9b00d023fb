r"""Mistral 3: the multimodal wrapper of Mistral, Ministral and Mistral 4, whose text half is loaded.

The Mistral Small 3.1, Ministral 3 and Mistral Small 4 model cards, 2025 and 2026.
"""

from typing import Any

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.deepseek import DeepseekConfig, stored
from jaxlin.models.gemma3 import HEADS, TEXT, VISION
from jaxlin.models.mistral import Mistral, MistralConfig, ministral3_config, mistral_config
from jaxlin.models.mistral4 import Mistral4, mistral4_config
from jaxlin.porting.port import Names, Port


def mistral3_config(json: ConfigReader) -> MistralConfig | DeepseekConfig:
    """The config of the text half of the multimodal wrapper, whose own `tie_word_embeddings` counts."""
    json.leave_out("vision_config", "image_token_index", "image_token_id", "multimodal_projector_bias")
    json.leave_out("projector_hidden_act", "spatial_merge_size", "vision_feature_layer")
    text = json.part("text_config")
    text.override("tie_word_embeddings", json.take("tie_word_embeddings", bool, True))
    kind = text.take("model_type", str, "mistral")
    if kind not in ("mistral", "ministral", "ministral3", "mistral4"):
        raise text.error("model_type", "mistral, ministral, ministral3 or mistral4", repr(kind))
    if kind == "mistral4":
        return mistral4_config(text)
    return ministral3_config(text) if kind == "ministral3" else mistral_config(text, wrapped=kind == "mistral")


def mistral3(config: MistralConfig | DeepseekConfig, **options: Any) -> Mistral | Mistral4:
    """The decoder of this config."""
    return (Mistral4 if isinstance(config, DeepseekConfig) else Mistral)(config, **options)


def stored_text(config: MistralConfig | DeepseekConfig) -> Names:
    """Where a checkpoint has the parameters."""
    return stored(config) if isinstance(config, DeepseekConfig) else {}


PORTS = {
    "mistral3": Port(mistral3, mistral3_config, names=stored_text, bodies=TEXT, heads=HEADS, left_out=VISION),
}
