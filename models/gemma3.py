r"""Gemma 3: Gemma 2's sandwich without softcaps; queries and keys normed in each head; two ropes.

Gemma Team, "Gemma 3 Technical Report", 2025.

- ``gemma3_text``: five sliding layers to a full one, each kind with a rope of its own.
- ``gemma3``: the text half of the multimodal wrapper.
"""

import functools
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.gemma import GemmaConfig, OffsetRMSNorm, gemma_numbers
from jaxlin.models.gemma2 import Gemma2, query_scale, softcap
from jaxlin.nn.attention import HeadNormAttention
from jaxlin.nn.blocks import Sandwich
from jaxlin.nn.mlp import GatedMLP
from jaxlin.porting.fields import layer_types, ropes_by_type, windows
from jaxlin.porting.gguf_keys import RMS_NORM, SHIFTED_NORMS, GGUFPort, sliding_types
from jaxlin.porting.port import Port


class Gemma3Block(Sandwich):
    """Gemma 2's block; queries and keys are normed in each head, and scores have no softcap."""

    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(OffsetRMSNorm, eps=config.norm_eps)
        bias, scale = config.attention_bias, config.attention_scale
        attention = HeadNormAttention(config, norm=norm, scale=scale, bias=bias, out_bias=bias, rngs=rngs)
        super().__init__(config, norm, attention, GatedMLP(config, rngs=rngs))


class Gemma3(Gemma2):
    """The Gemma 3 decoder."""

    Block = Gemma3Block


def gemma3_config(json: ConfigReader, *, wrapped: bool = False) -> GemmaConfig:
    """The config of the text model; the wrapper's text_config leaves out the defaults of transformers.

    As in transformers, neither computes `attn_logit_softcapping`, and the wrapper no softcap of logits either.
    """
    numbers = gemma_numbers(json, 131_072, vocab_size=262_208, num_attention_heads=8, num_key_value_heads=4)
    depth = numbers["num_hidden_layers"]
    pattern = json.positive("sliding_window_pattern", 6)
    types = layer_types(json, depth, lambda i: (i + 1) % pattern != 0)
    theta = {
        "full_attention": json.take("rope_theta", float, 1e6),
        "sliding_attention": json.take("rope_local_base_freq", float, 1e4),
    }
    ropes = ropes_by_type(json, numbers["head_dim"], numbers["max_position_embeddings"], theta)
    return GemmaConfig(
        **numbers,
        attention_scale=json.positive("query_pre_attn_scalar", 256) ** -0.5,
        final_logit_softcapping=None if wrapped else softcap(json, "final_logit_softcapping", None),
        ropes=tuple(ropes[kind] for kind in types),
        windows=windows(json, types, json.positive_or_none("sliding_window", 4096)),
    )


def gemma3_wrapper_config(json: ConfigReader) -> GemmaConfig:
    """The config of the text half of the multimodal wrapper, whose own `tie_word_embeddings` counts."""
    json.leave_out("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
    json.leave_out("boi_token_id", "eoi_token_id", "image_token_id")
    text = json.part("text_config")
    text.override("tie_word_embeddings", json.optional("tie_word_embeddings", bool, True) or False)
    return gemma3_config(text, wrapped=True)


VISION = {
    f"{body}{part}.*": "the vision half of the model"
    for body in ("", "model.")
    for part in ("vision_tower", "multi_modal_projector")
}
TEXT = ("model.language_model.", "language_model.model.", "language_model.")
TEXT += ("model.language_model.model.", "language_model.model.model.")
HEADS = ("lm_head.", "language_model.lm_head.")
"""Where wrappers keep their text half: today, before transformers 4.52, saved without a head, and from 5.10 to 5.23."""

PORTS = {
    "gemma3_text": Port(Gemma3, gemma3_config),
    "gemma3": Port(Gemma3, gemma3_wrapper_config, bodies=TEXT, heads=HEADS, left_out=VISION),
}


def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The scale of queries and the layers that slide, which GGUF files leave out."""
    return {**query_scale(62)(metadata, config), **sliding_types(metadata, config, period=6)}


GGUF = {
    "gemma3": GGUFPort(
        model_type="gemma3_text",
        keys={
            **RMS_NORM,
            "attention.sliding_window": "sliding_window",
            "final_logit_softcapping": "final_logit_softcapping",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
        read=("attention.sliding_window_pattern",),
        parts={"ffn_norm": "pre_feedforward_layernorm"},
        derive=derive,
        values=SHIFTED_NORMS,
    ),
}
