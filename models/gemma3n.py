r"""Gemma 3n: the text half of models made for phones, whose parts are in `jaxlin.models.gemma3n_text`.

- ``gemma3n_text``: four sliding layers to a full one, of which the last 15 read the keys and values of earlier ones.
- ``gemma3n``: the text half of the multimodal wrapper.
"""

from typing import Any

from jaxlin.checkpoint.config import ConfigReader, is_number
from jaxlin.common.printable import quoted
from jaxlin.models.gemma2 import softcap
from jaxlin.models.gemma3 import HEADS, TEXT
from jaxlin.models.gemma3n_gguf import GEMMA3N
from jaxlin.models.gemma3n_text import Gemma3n, Gemma3nConfig
from jaxlin.models.gemma4 import MEDIA
from jaxlin.nn.altup import StreamProjections
from jaxlin.porting.fields import decoder_numbers, layer_types, ropes_by_type, windows
from jaxlin.porting.port import Names, Port
from jaxlin.porting.shared_fields import shared_layers, unread_projections
from jaxlin.porting.tensor_rows import TensorRows

THETA = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
"""The key of the rotary base of each type of layers, and its default."""


def gemma3n_config(json: ConfigReader) -> Gemma3nConfig:
    """The config of the text model."""
    json.expect("altup_active_idx", 0)
    json.leave_out("altup_lr_multiplier", "query_pre_attn_scalar")  # in files, and read by no version of transformers
    sizes = json.peek("intermediate_size")
    if isinstance(sizes, list):
        if not sizes or not all(type(size) is int and size > 0 for size in sizes):
            raise json.error("intermediate_size", "a positive integer, or one for each layer", quoted(sizes))
        json.override("intermediate_size", max(sizes))
    numbers = decoder_numbers(
        json, act_key="hidden_activation", hidden_act="gelu_pytorch_tanh", max_position_embeddings=32_768, head_dim=256,
        num_attention_heads=8, num_key_value_heads=2, vocab_size=262_400, intermediate_size=16_384, tied=True,
    )  # fmt: skip
    depth = numbers["num_hidden_layers"]
    sizes = sizes if isinstance(sizes, list) else [numbers["intermediate_size"]] * depth
    if len(sizes) != depth:
        raise json.error("intermediate_size", f"one integer for each of {depth} layers", quoted(sizes))
    types = layer_types(json, depth, lambda i: (i + 1) % 5 != 0)
    kinds, value_layers = shared_layers(json, types, 15)
    shares = sparsities(json, depth)
    theta = {kind: json.take(key, float, base) for kind, (key, base) in THETA.items()}
    ropes = ropes_by_type(json, numbers["head_dim"], numbers["max_position_embeddings"], theta)
    ends = {0: ", first", depth - 1: ", last"} if depth > 1 else {0: ", alone"}
    return Gemma3nConfig(
        **numbers,
        attention_bias=json.take("attention_bias", bool, False),
        attention_kinds=kinds,
        intermediate_sizes=tuple(sizes),
        sparsities=shares,
        altup_num_inputs=json.positive("altup_num_inputs", 4, maximum=2**10),
        altup_correct_scale=json.take("altup_correct_scale", bool, True),
        laurel_rank=json.positive("laurel_rank", 64),
        hidden_size_per_layer_input=json.positive("hidden_size_per_layer_input", 256),
        vocab_size_per_layer_input=json.positive("vocab_size_per_layer_input", 262_144),
        final_logit_softcapping=softcap(json, "final_logit_softcapping", 30.0),
        value_layers=value_layers,
        layer_kinds=tuple(f"{kinds[i]}, {sizes[i]}, {shares[i]}{ends.get(i, '')}" for i in range(depth)),
        ropes=tuple(ropes[kind] for kind in types),
        windows=windows(json, types, json.positive("sliding_window", 512)),
    )


def sparsities(json: ConfigReader, depth: int) -> tuple[float, ...]:
    """The share of neurons that are off in each layer; by default 95 % in the first ten of more than ten layers."""
    default = [0.95 if depth > 10 and i < 10 else 0.0 for i in range(depth)]
    shares = json.take("activation_sparsity_pattern", list, default)
    if len(shares) != depth or not all(is_number(share) and 0 <= share < 1 for share in shares):
        expected = f"{depth} numbers of at least 0 and below 1, one for each layer"
        raise json.error("activation_sparsity_pattern", expected, quoted(shares))
    return tuple(map(float, shares))


def gemma3n_wrapper_config(json: ConfigReader) -> Gemma3nConfig:
    """The config of the text half of the multimodal wrapper, whose own `tie_word_embeddings` counts."""
    json.leave_out("vision_config", "audio_config", "audio_soft_tokens_per_image", "vision_soft_tokens_per_image")
    json.leave_out(*(f"{part}_token_id" for part in ("boi", "eoi", "image", "boa", "eoa", "audio")))
    text = json.part("text_config")
    text.override("tie_word_embeddings", json.optional("tie_word_embeddings", bool, True) or False)
    return gemma3n_config(text)


def names(config: Gemma3nConfig) -> Names:
    """The projections of the streams, which no layer has in a checkpoint."""
    stored = {"entry": "altup_projections", "exit": "altup_unembed_projections"}
    return {
        f"{part}.{name}.weight": TensorRows(f"{module}.{i}.weight", of_model=True)
        for part, module in stored.items()
        for i, name in enumerate(StreamProjections.names(config.altup_num_inputs))
    }


OPTIONS: dict[str, Any] = {"names": names, "unread": lambda config: unread_projections(config.value_layers)}
PORTS = {
    "gemma3n_text": Port(Gemma3n, gemma3n_config, **OPTIONS),
    "gemma3n": Port(Gemma3n, gemma3n_wrapper_config, bodies=TEXT, heads=HEADS, left_out=MEDIA, **OPTIONS),
}

GGUF = {"gemma3n": GEMMA3N}
