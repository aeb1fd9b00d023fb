r"""Gemma 2: a norm before and after attention and MLP (sandwich), softcaps, and a window in every other layer.

Gemma Team, "Gemma 2", 2024. The softcaps bound attention scores and logits. ``vaultgemma`` has Gemma 2's attention in
Gemma 1's block: it has no norms after attention and MLP ("VaultGemma", 2025).
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.gemma import Gemma, GemmaConfig, gemma_numbers, gemma_parts
from jaxlin.nn.blocks import Sandwich
from jaxlin.porting.fields import layer_types, rope_of, windows
from jaxlin.porting.gguf_keys import RMS_NORM, SHIFTED_NORMS, GGUFPort
from jaxlin.porting.port import Port


class Gemma2Block(Sandwich):
    """Norms before and after attention and the MLP."""

    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(*gemma_parts(config, rngs))


class Gemma2(Gemma):
    """The Gemma 2 decoder."""

    Block = Gemma2Block


def softcap(json: ConfigReader, key: str, default: float | None) -> float | None:
    """The softcap under `key`; None where the file has null."""
    return json.above_zero(key, json.optional(key, float, default))


def gemma2_config(json: ConfigReader) -> GemmaConfig:
    """The config of Gemma 2."""
    numbers = gemma_numbers(json, 8192, num_attention_heads=8, num_key_value_heads=4)
    depth = numbers["num_hidden_layers"]
    types = layer_types(json, depth, lambda i: i % 2 == 0)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    return GemmaConfig(
        **numbers,
        attention_scale=json.positive("query_pre_attn_scalar", 256) ** -0.5,
        attn_logit_softcapping=softcap(json, "attn_logit_softcapping", 50.0),
        final_logit_softcapping=softcap(json, "final_logit_softcapping", 30.0),
        ropes=(rope,) * depth,
        windows=windows(json, types, json.positive_or_none("sliding_window", 4096)),
    )


PORTS = {
    "gemma2": Port(Gemma2, gemma2_config),
    "vaultgemma": Port(
        Gemma,
        gemma2_config,
        names=lambda config: {"post_attention_layernorm.weight": "pre_feedforward_layernorm.weight"},
    ),
}


def query_scale(depth_of_27b: int) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]:
    """`query_pre_attn_scalar`, which files leave out: `head_dim`, or in the 27B model hidden size over heads."""

    def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        del metadata
        is_27b = config["num_hidden_layers"] == depth_of_27b
        mean = config["hidden_size"] // config["num_attention_heads"]
        return {"query_pre_attn_scalar": mean if is_27b else config["head_dim"]}

    return derive


GGUF = {
    "gemma2": GGUFPort(
        model_type="gemma2",
        keys={
            **RMS_NORM,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
            "attention.sliding_window": "sliding_window",
        },
        parts={"ffn_norm": "pre_feedforward_layernorm"},
        derive=query_scale(46),
        values=SHIFTED_NORMS,
    ),
}
