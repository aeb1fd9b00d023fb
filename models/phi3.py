r"""Phi-3, 3.5, Phi-4, Phi-4-mini and their reasoning models: Llama with fused projections.

"Phi-3 Technical Report", 2024; "Phi-4 Technical Report", 2024. A checkpoint of ``phi3`` has queries, keys and values
in one tensor, gate and up in another. Split, it is Llama, with partial rotation and LongRoPE where the config says so.
"""

from collections.abc import Mapping
from typing import Any

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.printable import quoted
from jaxlin.models.mistral import Mistral, MistralConfig
from jaxlin.porting.fields import decoder_numbers, one_layer_type, rope_of, rope_parameters
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort
from jaxlin.porting.port import Port
from jaxlin.porting.tensor_rows import TensorRows, stacked_rows


def phi3_config(json: ConfigReader) -> MistralConfig:
    """The config of Phi-3 and 4: Llama without biases, and with a window if the file has one, as Mistral."""
    numbers = decoder_numbers(json, norm_eps=1e-5, max_position_embeddings=4096)
    original = json.positive("original_max_position_embeddings", 4096)
    depth, length = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    window = json.positive_or_none("sliding_window", None)
    one_layer_type(json, depth)
    # The first files call LongRoPE "su" or "yarn"; the trained length stands outside the rope parameters.
    changes: dict[str, Any] = {"original_max_position_embeddings": original}
    parameters = rope_parameters(json)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind in ("su", "yarn"):
        changes["rope_type"] = "longrope"
    elif kind not in ("default", "longrope"):
        raise json.error("rope_scaling", "a rope_type default or longrope, which phi3 supports", quoted(kind))
    rope = rope_of(json, numbers["head_dim"], length, partial=1.0, replace=changes)
    return MistralConfig(**numbers, ropes=(rope,) * depth, windows=(window,) * depth)


def fused_rows(config: MistralConfig) -> Mapping[str, TensorRows]:
    """The rows of the fused tensors of a checkpoint that are queries, keys, values, gate and up."""
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    f = config.intermediate_size
    return {
        **stacked_rows("self_attn.qkv_proj.weight", q_proj=q, k_proj=kv, v_proj=kv),
        **stacked_rows("mlp.gate_up_proj.weight", gate_proj=f, up_proj=f),
    }


def phi4_multimodal_config(json: ConfigReader) -> MistralConfig:
    """The config of the text half of Phi-4-multimodal, without the adapters for images and speech."""
    json.leave_out("vision_config", "audio_config")
    return phi3_config(json)


MEDIA = {f"{body}embed_tokens_extend.*": "the vision and speech halves of the model" for body in ("", "model.")}

PORTS = {
    "phi3": Port(Mistral, phi3_config, names=fused_rows),
    "phi4_multimodal": Port(Mistral, phi4_multimodal_config, names=fused_rows, left_out=MEDIA),
}


def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The window, where 0 means none, and the trained length, which stands outside the rope parameters."""
    del config
    original = metadata.get("rope.scaling.original_context_length")
    return {
        "sliding_window": metadata.get("attention.sliding_window") or None,
        "original_max_position_embeddings": original,
    }


GGUF = {
    "phi3": GGUFPort(
        model_type="phi3",
        keys={**RMS_NORM, "attention.sliding_window": "sliding_window"},
        parts={"ffn_up": "mlp.gate_up_proj"},
        derive=derive,
        fused=True,
        partial=True,
    ),
}
