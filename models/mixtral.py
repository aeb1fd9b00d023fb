r"""Mixtral: Mistral's block with experts, of which each token passes through two whose weights sum to 1.

Jiang et al., "Mixtral of Experts", 2024.
"""

import functools
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.llama import Llama
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.experts import ExpertConfig, ExpertMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.routers import SoftmaxRouter
from jaxlin.porting.fields import decoder_numbers, expert_numbers, rope_of
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import either, fused_experts, single_experts


class MixtralBlock(PreNorm):
    """Llama's block without biases, with experts."""

    def __init__(self, config: ExpertConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        sizes = config.hidden_size, config.num_experts, config.num_experts_per_tok
        experts = ExpertMLP(config, SoftmaxRouter(*sizes, renormalize=True, rngs=rngs), rngs=rngs)
        super().__init__(config, norm, Attention(config, rngs=rngs), experts)


class Mixtral(Llama):
    """The Mixtral decoder."""

    Block = MixtralBlock


def mixtral_numbers(json: ConfigReader, *, num_experts: int, count_keys: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a decoder whose experts are as wide as `intermediate_size` says, and which has one window."""
    numbers = decoder_numbers(
        json, norm_eps=1e-5, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=4096 * 32
    )
    counts: dict[str, Any] = {"num_experts": num_experts, "num_experts_per_tok": 2, "count_keys": count_keys}
    experts = expert_numbers(json, **counts, width_key="intermediate_size")
    window = json.positive_or_none("sliding_window", None)
    return {**numbers, **experts, "windows": (window,) * numbers["num_hidden_layers"]}


def mixtral_config(json: ConfigReader) -> ExpertConfig:
    """The config of Mixtral."""
    numbers = mixtral_numbers(json, num_experts=8, count_keys=("num_local_experts", "num_experts"))
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"], theta=1e6)
    return ExpertConfig(**numbers, ropes=(rope,) * numbers["num_hidden_layers"])


def mixtral_names(config: ExpertConfig) -> Names:
    """The router and the experts, each a tensor, under ``block_sparse_moe``; or fused, as other types have them."""
    stored = single_experts("mlp.experts", "block_sparse_moe.experts", ("w1", "w3", "w2"))
    fused = fused_experts("mlp.experts", config.moe_intermediate_size)
    return {**either(stored, fused), "mlp.gate.weight": ("block_sparse_moe.gate.weight", "mlp.gate.weight")}


PORTS = {"mixtral": Port(Mixtral, mixtral_config, names=mixtral_names)}
