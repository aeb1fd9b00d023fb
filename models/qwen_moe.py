r"""Qwen MoE: the blocks of Qwen 2 and 3, in which the MLP is a mixture of experts.

"Qwen1.5-MoE", 2024; "Qwen2 Technical Report", 2024; "Qwen3 Technical Report", 2025.

- ``qwen3_moe``: softmax over all experts, of which the largest are taken.
- ``qwen2_moe``: beside them a shared expert, times a sigmoid of its own.

Some layers may have a dense MLP: those in `mlp_only_layers`, and all but every `decoder_sparse_step`-th.
"""

import functools
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.printable import quoted
from jaxlin.models.llama import Llama
from jaxlin.nn.attention import Attention, HeadNormAttention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.experts import DENSE, EXPERTS, ExpertConfig, ExpertMLP
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.routers import SoftmaxRouter
from jaxlin.porting.fields import decoder_numbers, expert_numbers, layer_types, rope_of, windows
from jaxlin.porting.gguf_keys import expert_port
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import either, fused_experts, single_experts


@dataclass(frozen=True, kw_only=True)
class QwenMoeConfig(ExpertConfig):
    """`ExpertConfig`, whether the weights of the chosen experts sum to 1, and whether attention has biases."""

    norm_topk_prob: bool
    attention_bias: bool


def qwen_mlp(config: QwenMoeConfig, kind: str, rngs: nnx.Rngs) -> GatedMLP | ExpertMLP:
    """The MLP of a layer of this kind, which ends in `DENSE` if the MLP is dense."""
    if kind.endswith(DENSE):
        return GatedMLP(config, rngs=rngs)
    sizes = config.hidden_size, config.num_experts, config.num_experts_per_tok
    router = SoftmaxRouter(*sizes, renormalize=config.norm_topk_prob, rngs=rngs)
    return ExpertMLP(config, router, gated_shared=True, rngs=rngs)


class Qwen2MoeBlock(PreNorm):
    """Qwen 2's block with experts."""

    def __init__(self, config: QwenMoeConfig, kind: str, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        attention = Attention(config, bias=config.attention_bias, rngs=rngs)
        super().__init__(config, norm, attention, qwen_mlp(config, kind, rngs))


class Qwen3MoeBlock(PreNorm):
    """Qwen 3's block with experts."""

    def __init__(self, config: QwenMoeConfig, kind: str, *, rngs: nnx.Rngs) -> None:
        norm, bias = functools.partial(RMSNorm, eps=config.norm_eps), config.attention_bias
        attention = HeadNormAttention(config, norm=norm, bias=bias, out_bias=bias, rngs=rngs)
        super().__init__(config, norm, attention, qwen_mlp(config, kind, rngs))


class Qwen2Moe(Llama):
    """The decoder of Qwen 1.5 and 2 with experts."""

    Block = Qwen2MoeBlock

    def make_block(self, config: QwenMoeConfig, kind: str, rngs: nnx.Rngs) -> Any:
        """A block with experts, or with a dense MLP."""
        return self.Block(config, kind, rngs=rngs)


class Qwen3Moe(Qwen2Moe):
    """The decoder of Qwen 3 with experts."""

    Block = Qwen3MoeBlock


def sparse_layers(json: ConfigReader, depth: int) -> tuple[str, ...]:
    """The kind of each layer; none where all have experts."""
    dense, step = json.take("mlp_only_layers", list, []), json.positive("decoder_sparse_step", 1)
    if any(type(layer) is not int for layer in dense):
        raise json.error("mlp_only_layers", "a list of the numbers of layers", quoted(dense))
    kinds = tuple(DENSE if i in dense or (i + 1) % step else EXPERTS for i in range(depth))
    return kinds if DENSE in kinds else ()


def moe_numbers(json: ConfigReader, numbers: dict[str, Any]) -> dict[str, Any]:
    """The fields of both versions beside those of a decoder, which `numbers` has."""
    depth = numbers["num_hidden_layers"]
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    sparse = {"layer_kinds": sparse_layers(json, depth), "norm_topk_prob": json.take("norm_topk_prob", bool, False)}
    return {**numbers, **sparse, "ropes": (rope,) * depth}


def window_of(json: ConfigReader) -> int | None:
    """The window, which is written in every file and means nothing unless `use_sliding_window` says so."""
    slides = json.take("use_sliding_window", bool, False)
    window = json.positive_or_none("sliding_window", 4096) if slides else None
    json.leave_out("sliding_window")
    return window


def qwen2_moe_config(json: ConfigReader) -> QwenMoeConfig:
    """The config of Qwen 1.5 and 2 with experts; by default every second of the first layers slides, if any does."""
    numbers = decoder_numbers(json, max_position_embeddings=32768, num_attention_heads=16, num_key_value_heads=16)
    window, first = window_of(json), json.take("max_window_layers", int, 28)
    types = layer_types(json, numbers["num_hidden_layers"], lambda i: window is not None and i < first and i % 2 == 0)
    return QwenMoeConfig(
        **moe_numbers(json, numbers),
        **expert_numbers(json, num_experts=60, num_experts_per_tok=4, width=1408, count_keys=("num_experts",)),
        shared_expert_intermediate_size=json.positive("shared_expert_intermediate_size", 5632),
        windows=windows(json, types, window),
        attention_bias=json.take("qkv_bias", bool, True),
    )


def qwen3_moe_config(json: ConfigReader) -> QwenMoeConfig:
    """The config of Qwen 3 with experts, in which every layer slides or none."""
    numbers = decoder_numbers(json, max_position_embeddings=32768, num_attention_heads=32, num_key_value_heads=4)
    return QwenMoeConfig(
        **moe_numbers(json, numbers),
        **expert_numbers(json, num_experts=128, num_experts_per_tok=8, width=768),
        windows=(window_of(json),) * numbers["num_hidden_layers"],
        attention_bias=json.take("attention_bias", bool, False),
    )


def expert_names(config: ExpertConfig) -> Names:
    """Experts in a tensor each, as transformers writes them, or fused."""
    return either(single_experts("mlp.experts"), fused_experts("mlp.experts", config.moe_intermediate_size))


PORTS = {
    "qwen2_moe": Port(Qwen2Moe, qwen2_moe_config, names=expert_names),
    "qwen3_moe": Port(Qwen3Moe, qwen3_moe_config, names=expert_names),
}

GGUF = {
    "qwen2moe": expert_port("qwen2_moe", normed=False, bias="qkv_bias"),
    "qwen3moe": expert_port("qwen3_moe", "shared_expert_intermediate_size", normed=True, bias="attention_bias"),
}
