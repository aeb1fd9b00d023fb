r"""Phi-3.5-MoE: Llama's block with LayerNorms and biases, and experts chosen one after the other.

"Phi-3 Technical Report", 2024; Liu et al., "GRIN: GRadient-INformed MoE", 2024.
"""

import functools
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader, is_number
from jaxlin.common.printable import quoted
from jaxlin.models.mixtral import mixtral_names, mixtral_numbers
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.experts import ExpertConfig, ExpertMLP
from jaxlin.nn.modules import LayerNorm
from jaxlin.nn.ropes import Rope
from jaxlin.nn.routers import SparseMixer
from jaxlin.porting.fields import rope_of, rope_parameters
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class PhimoeConfig(ExpertConfig):
    """`ExpertConfig`, the jitter of `SparseMixer`, and which projections have biases."""

    router_jitter_noise: float
    attention_bias: bool
    lm_head_bias: bool


class PhimoeBlock(PreNorm):
    """Llama's block with LayerNorms and experts."""

    def __init__(self, config: PhimoeConfig, *, rngs: nnx.Rngs) -> None:
        norm, bias = functools.partial(LayerNorm, eps=config.norm_eps), config.attention_bias
        router = SparseMixer(config.hidden_size, config.num_experts, jitter=config.router_jitter_noise, rngs=rngs)
        attention = Attention(config, bias=bias, out_bias=bias, rngs=rngs)
        super().__init__(config, norm, attention, ExpertMLP(config, router, rngs=rngs))


class Phimoe(Decoder):
    """The decoder of Phi-3.5-MoE."""

    Block = PhimoeBlock

    def final_norm(self, config: Config) -> LayerNorm:
        """LayerNorm."""
        return LayerNorm(config.hidden_size, config.norm_eps)


class BiasedPhimoe(Phimoe):
    """The decoder of a config with `lm_head_bias`."""

    head_bias = True


def phimoe(config: PhimoeConfig, **options: Any) -> Phimoe:
    """The decoder of a config."""
    return (BiasedPhimoe if config.lm_head_bias else Phimoe)(config, **options)


def phimoe_rope(json: ConfigReader, head_dim: int, length: int) -> tuple[Rope, int]:
    """The rotary positions, and the longest prompt.

    Of LongRoPE transformers takes the short table at every length, and past the trained one the factor of the long one.
    No model was trained with both: longer prompts are refused.
    """
    parameters, extra = rope_parameters(json), ("short_mscale", "long_mscale")
    if (parameters.get("rope_type") or parameters.get("type") or "default") == "default":
        return rope_of(json, head_dim, length, theta=1e6, extra=extra), length
    trained = "original_max_position_embeddings"
    scale, original = parameters.get("short_mscale"), parameters.get(trained) or json.peek(trained)
    for key, value in (("short_mscale", scale), (trained, original)):
        if value is None or not is_number(value) or value <= 0:
            raise json.error("rope_parameters", f"a number above 0 under {key}", quoted(value))
    rope = rope_of(json, head_dim, length, theta=1e6, replace={"attention_factor": scale}, extra=extra)
    return rope, min(length, int(original))


def phimoe_config(json: ConfigReader) -> PhimoeConfig:
    """The config of Phi-3.5-MoE."""
    numbers = mixtral_numbers(json, num_experts=16, count_keys=("num_local_experts",))
    if numbers["num_experts_per_tok"] != 2:
        raise json.error("num_experts_per_tok", "2, which this router chooses", str(numbers["num_experts_per_tok"]))
    rope, length = phimoe_rope(json, numbers["head_dim"], numbers["max_position_embeddings"])
    numbers["max_position_embeddings"] = length
    return PhimoeConfig(
        **numbers,
        ropes=(rope,) * numbers["num_hidden_layers"],
        router_jitter_noise=json.take("router_jitter_noise", float, 0.01),
        attention_bias=json.take("attention_bias", bool, False),
        lm_head_bias=json.take("lm_head_bias", bool, False),
    )


PORTS = {"phimoe": Port(phimoe, phimoe_config, names=mixtral_names)}
