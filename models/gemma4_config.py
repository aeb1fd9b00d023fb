"""The configs of Gemma 4, as config.json has them."""

from collections.abc import Callable
from typing import Any

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.printable import quoted
from jaxlin.models.gemma2 import softcap
from jaxlin.models.gemma4_text import Gemma4Config
from jaxlin.nn.ropes import Rope
from jaxlin.nn.shared_attention import FULL, SLIDING
from jaxlin.porting.fields import MAX_COUNT, decoder_numbers, layer_types, windows
from jaxlin.porting.rope_parameters import rope_from_parameters
from jaxlin.porting.shared_fields import shared_layers


def gemma4_config(
    json: ConfigReader, *, length: int = 131_072, window: int = 512, per_layer: int = 256
) -> Gemma4Config:
    """The config of the text model; `length`, `window` and `per_layer` are defaults in which the types differ."""
    if json.peek("use_bidirectional_attention") != "vision":  # by which tokens of text see what is before them
        json.expect("use_bidirectional_attention", None)
    json.leave_out("use_bidirectional_attention")
    numbers = decoder_numbers(
        json, act_key="hidden_activation", hidden_act="gelu_pytorch_tanh", max_position_embeddings=length, head_dim=256,
        num_attention_heads=8, num_key_value_heads=4, vocab_size=262_144, tied=True,
    )  # fmt: skip
    depth = numbers["num_hidden_layers"]
    types = (*layer_types(json, depth, lambda i: (i + 1) % 6 != 0)[:-1], FULL)  # as in transformers, whatever is listed
    keys_are_values = json.take("attention_k_eq_v", bool, False)
    full = full_heads(json, types, numbers, keys_are_values)
    kinds, value_layers = shared_layers(json, types, 0)
    f, double = numbers["intermediate_size"], json.take("use_double_wide_mlp", bool, False)
    p = json.at_least_zero("hidden_size_per_layer_input", per_layer)
    rows = json.positive("vocab_size_per_layer_input", 262_144)
    ropes = ropes_of_kinds(json, types, {SLIDING: numbers["head_dim"], FULL: full["head_dim"]}, length)
    return Gemma4Config(
        **numbers,
        **expert_numbers(json),
        attention_bias=json.take("attention_bias", bool, False),
        full_head_dim=full["head_dim"],
        full_key_value_heads=full["num_key_value_heads"],
        keys_are_values=keys_are_values,
        shared_intermediate_size=2 * f if double else f,
        hidden_size_per_layer_input=p,
        vocab_size_per_layer_input=rows,
        final_logit_softcapping=softcap(json, "final_logit_softcapping", None),
        value_layers=value_layers,
        layer_kinds=kinds,
        ropes=tuple(ropes[kind] for kind in types),
        windows=windows(json, types, json.positive("sliding_window", window)),
    )


def expert_numbers(json: ConfigReader) -> dict[str, Any]:
    """The sizes of the mixture of experts beside each MLP; zeros without one."""
    keys = {"num_experts": "num_experts", "num_experts_per_tok": "top_k_experts"}
    keys["moe_intermediate_size"] = "moe_intermediate_size"
    if not json.take("enable_moe_block", bool, False):
        json.leave_out(*keys.values())
        return dict.fromkeys(keys, 0)
    sizes = {name: json.positive(key) for name, key in keys.items()}
    if sizes["num_experts_per_tok"] > sizes["num_experts"]:
        count = sizes["num_experts"]
        raise json.error("top_k_experts", f"at most num_experts ({count})", str(sizes["num_experts_per_tok"]))
    return sizes


def full_heads(
    json: ConfigReader, types: tuple[str, ...], numbers: dict[str, Any], keys_are_values: bool
) -> dict[str, int]:
    """The heads of full layers, under two keys, or as transformers writes them now: layer by layer."""
    usual = {key: numbers[key] for key in ("head_dim", "num_key_value_heads")}
    heads = {**usual, "head_dim": json.positive("global_head_dim", 512)}
    count = json.positive("num_global_key_value_heads", None)
    if count is not None and keys_are_values:
        heads["num_key_value_heads"] = count
    overrides = json.take("per_layer_config", dict, None)
    if overrides is not None:
        # Layer 2 of ten or more is written as "02".
        overrides = {layer.lstrip("0") or "0": own for layer, own in overrides.items()}
        full = [str(i) for i, kind in enumerate(types) if kind == FULL]
        own = overrides.get(full[-1], {})
        heads = {**usual, **(own if isinstance(own, dict) else {})}
        if overrides != ({layer: own for layer in full} if own else {}) or heads.keys() != usual.keys():
            expected = f"the same {' and '.join(usual)} for each full layer, and no others"
            raise json.error("per_layer_config", expected, quoted(overrides))
    k, n, queries = *heads.values(), numbers["num_attention_heads"]
    if type(k) is not int or k % 2 or not 2 <= k <= MAX_COUNT:
        raise json.error("global_head_dim", "an even number, as rotary positions pair features", quoted(k))
    if type(n) is not int or n < 1 or queries % n:
        raise json.error("num_global_key_value_heads", f"a divisor of num_attention_heads ({queries})", quoted(n))
    return heads


ROPES: dict[str, dict[str, Any]] = {
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}
"""The default rope parameters of both kinds of layers."""


def ropes_of_kinds(
    json: ConfigReader, types: tuple[str, ...], head_dims: dict[str, int], length: int
) -> dict[str, Rope]:
    """The rope of each kind of layer, from nested parameters: transformers reads no others in this family."""
    nested, ropes = json.take("rope_parameters", dict, None) or ROPES, {}
    for kind in sorted({*types, *nested}):
        parameters = nested.get(kind)
        if kind not in ROPES or not isinstance(parameters, dict) or "rope_theta" not in parameters:
            raise json.error(
                "rope_parameters", f"an object with a rope_theta for each of {', '.join(ROPES)}", quoted(nested)
            )
        if (rope := parameters.get("rope_type", "default")) not in ("default", "proportional", "linear"):
            raise json.error("rope_parameters", "a rope_type default, proportional or linear", quoted(rope))
        path, dim = json.path_of(f"rope_parameters.{kind}"), head_dims[kind]
        ropes[kind] = rope_from_parameters(parameters, dim=dim, theta=1e4, max_position_embeddings=length, path=path)
    return ropes


def gemma4_unified_config(json: ConfigReader) -> Gemma4Config:
    """The config of the unified models, of which transformers reads no keys of experts or per-layer embeddings."""
    for key in ("enable_moe_block", "use_double_wide_mlp", "hidden_size_per_layer_input", "vocab_size_per_layer_input"):
        json.override(key, None)
    return gemma4_config(json, length=262_144, window=1024, per_layer=0)


def gemma4_wrapper_config(
    json: ConfigReader, text_config: Callable[[ConfigReader], Gemma4Config] = gemma4_config
) -> Gemma4Config:
    """The config of the text half of a multimodal wrapper, whose own `tie_word_embeddings` counts."""
    json.leave_out("vision_config", "audio_config", "eoa_token_index", "vision_soft_tokens_per_image")
    json.leave_out(*(f"{part}_token_id" for part in ("boi", "eoi", "image", "video", "boa", "eoa", "audio")))
    text = json.part("text_config")
    text.override("tie_word_embeddings", json.take("tie_word_embeddings", bool, True))
    return text_config(text)
