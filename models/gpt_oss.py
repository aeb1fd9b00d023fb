r"""gpt-oss: experts with clipped branches and biases, sinks beside the keys, and a window in every other layer.

OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025. Sinks: Xiao et al., "Efficient Streaming Language Models with
Attention Sinks", 2024. An expert computes $\min(g, L)\,\sigma(\alpha \min(g, L)) \odot (\mathrm{clip}(u, -L, L) + 1)$,
which is $g \odot (u + 1)$ times a slope. The 1 is an additive constant, so it is a bias, which no checkpoint stores.
"""

import functools
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.printable import quoted
from jaxlin.models.gpt_oss_experts import ClippedSlope, GptOssConfig, GptOssMLP
from jaxlin.models.llama import Llama
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.modules import RMSNorm
from jaxlin.porting.fields import decoder_numbers, expert_numbers, layer_types, rope_of, windows
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort, sliding_types
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import TensorRows, either, fused_experts


class GptOssBlock(PreNorm):
    """Llama's block with sinks, and experts in the place of the MLP."""

    def __init__(self, config: GptOssConfig, *, rngs: nnx.Rngs) -> None:
        norm, bias = functools.partial(RMSNorm, eps=config.norm_eps), config.attention_bias
        attention = Attention(config, bias=bias, out_bias=bias, sinks=True, rngs=rngs)
        super().__init__(config, norm, attention, GptOssMLP(config, rngs=rngs))


class GptOss(Llama):
    """The gpt-oss decoder."""

    Block = GptOssBlock


YARN = {
    "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": False,
}  # fmt: skip
"""The rope parameters of a config without any."""


def gpt_oss_config(json: ConfigReader) -> GptOssConfig:
    """The config of gpt-oss."""
    # Keys of OpenAI's own code in its files, which transformers reads under other names.
    json.leave_out("experts_per_token", "initial_context_length")
    numbers = decoder_numbers(
        json, norm_eps=1e-5, head_dim=64, num_attention_heads=64, num_key_value_heads=8, vocab_size=201_088,
        max_position_embeddings=131_072,
    )  # fmt: skip
    depth = numbers["num_hidden_layers"]
    types = layer_types(json, depth, lambda i: i % 2 == 0)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"], theta=1.5e5, default=YARN)
    limit = json.take("swiglu_limit", float, 7.0)
    if limit <= 1:
        raise json.error("swiglu_limit", "a number above 1, so that the up branch plus 1 can be 0", str(limit))
    return GptOssConfig(
        **numbers,
        ropes=(rope,) * depth,
        windows=windows(json, types, json.positive_or_none("sliding_window", 128)),
        **expert_numbers(json, num_experts=128, num_experts_per_tok=4, width_key="intermediate_size"),
        attention_bias=json.take("attention_bias", bool, True),
        slope=ClippedSlope(json.take("swiglu_alpha", float, 1.702), limit),
    )


def gpt_oss_names(config: GptOssConfig) -> Names:
    """The names of a checkpoint: experts in bfloat16 are transposed, in MXFP4 they are not; gate and up alternate."""
    width = config.moe_intermediate_size
    plain, packed = (
        fused_experts("mlp.experts", width, suffix=suffix, transposed=not suffix, interleaved=True, biases=True)
        for suffix in ("", "_blocks")
    )
    names = either(plain, {name: place for name, place in packed.items() if name.endswith("weight")})
    router = {f"mlp.gate.{kind}": f"mlp.router.{kind}" for kind in ("weight", "bias")}
    return {**names, **router, "mlp.experts.up_proj.one.bias": TensorRows("", constant=1.0)}


PORTS = {"gpt_oss": Port(GptOss, gpt_oss_config, names=gpt_oss_names)}


def gguf_keys(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that need more than a renaming. No file says that the ends of YaRN's ramp are not rounded."""
    widths = {key: metadata[key] for key in ("feed_forward_length", "expert_feed_forward_length") if key in metadata}
    if len(set(widths.values())) != 1:
        raise ValueError(f"feed_forward_length: expected one width, that of the experts; found {quoted(widths)}")
    scaling = config.get("rope_scaling", {"rope_type": "default"})
    return {
        **sliding_types(metadata, config, 2),
        "rope_scaling": {**scaling, **({"truncate": False} if scaling["rope_type"] == "yarn" else {})},
        "attention_bias": config.get("attention_bias", False),
    }


GGUF = {
    "gpt-oss": GGUFPort(
        model_type="gpt_oss",
        keys={
            **{**RMS_NORM, "attention.sliding_window": "sliding_window", "expert_count": "num_local_experts"},
            **{"expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "intermediate_size"},
        },
        optional=("feed_forward_length",),
        read=("attention.sliding_window_pattern",),
        parts={"attn_sinks.weight": "self_attn.sinks"},
        flags={"attention_bias": "self_attn.q_proj.bias"},
        derive=gguf_keys,
    )
}
