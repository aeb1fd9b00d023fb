r"""OLMoE and FlexOlmo: the blocks of OLMo 1 and 2 with experts.

Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models", 2024; Shi et al., "FlexOlmo", 2025.

- ``olmoe``: norms before attention and MLP; queries and keys are normed over their full width, and then clipped, as
  values are, if the config says so.
- ``flex_olmo``: norms after attention and MLP.
"""

import functools
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.olmo import OlmoConfig, clipped
from jaxlin.models.olmo2 import Olmo2, WidthNormAttention
from jaxlin.models.qwen_moe import expert_names
from jaxlin.nn.blocks import PostNorm, PreNorm
from jaxlin.nn.context import Context
from jaxlin.nn.experts import ExpertConfig, ExpertMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.routers import SoftmaxRouter
from jaxlin.porting.fields import decoder_numbers, expert_numbers, rope_of
from jaxlin.porting.gguf_keys import expert_port
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class OlmoeConfig(ExpertConfig, OlmoConfig):
    """`ExpertConfig`, `OlmoConfig`, and whether the weights of the chosen experts sum to 1."""

    norm_topk_prob: bool


class ClippedWidthNormAttention(WidthNormAttention):
    r"""`WidthNormAttention` whose queries, keys and values are clipped to $[-c, c]$, after the norms."""

    def __init__(self, config: OlmoeConfig, clip: float, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.clip = clip

    def queries_and_keys(
        self, x: Float[Array, "t d"], ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation, normed and clipped."""
        q, k = super().queries_and_keys(x, ctx)
        return clipped(q, self.clip, ctx.within("q")), clipped(k, self.clip, ctx.within("k"))

    def adjusted_values(self, v: Float[Array, "t *b n k"], ctx: Context) -> Float[Array, "t *b n k"]:
        """Values, clipped."""
        return clipped(v, self.clip, ctx)


def olmoe_experts(config: OlmoeConfig, rngs: nnx.Rngs) -> ExpertMLP:
    """The experts of a layer."""
    sizes = config.hidden_size, config.num_experts, config.num_experts_per_tok
    return ExpertMLP(config, SoftmaxRouter(*sizes, renormalize=config.norm_topk_prob, rngs=rngs), rngs=rngs)


class OlmoeBlock(PreNorm):
    """RMSNorm before attention and before the experts."""

    def __init__(self, config: OlmoeConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        if config.clip_qkv is None:
            attention = WidthNormAttention(config, rngs=rngs)
        else:
            attention = ClippedWidthNormAttention(config, config.clip_qkv, rngs=rngs)
        super().__init__(config, norm, attention, olmoe_experts(config, rngs))


class FlexOlmoBlock(PostNorm):
    """RMSNorm after attention and after the experts."""

    def __init__(self, config: OlmoeConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        super().__init__(config, norm, WidthNormAttention(config, rngs=rngs), olmoe_experts(config, rngs))


class Olmoe(Olmo2):
    """The OLMoE decoder."""

    Block = OlmoeBlock


class FlexOlmo(Olmo2):
    """The FlexOlmo decoder."""

    Block = FlexOlmoBlock


def olmoe_numbers(json: ConfigReader, *, norm_eps: float, theta: float, experts: int, per_token: int) -> dict[str, Any]:
    """The fields that both have, with the defaults of either; `intermediate_size` is the width of an expert."""
    numbers = decoder_numbers(json, norm_eps=norm_eps, max_position_embeddings=4096)
    depth = numbers["num_hidden_layers"]
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"], theta=theta)
    sizes = expert_numbers(json, num_experts=experts, num_experts_per_tok=per_token, width_key="intermediate_size")
    return {
        **numbers,
        **sizes,
        "ropes": (rope,) * depth,
        "windows": (None,) * depth,
        "attention_bias": json.take("attention_bias", bool, False),
        "norm_topk_prob": json.take("norm_topk_prob", bool, False),
    }


def olmoe_config(json: ConfigReader) -> OlmoeConfig:
    """The config of OLMoE."""
    numbers = olmoe_numbers(json, norm_eps=1e-5, theta=1e4, experts=64, per_token=8)
    if (width := numbers["head_dim"] * numbers["num_attention_heads"]) != numbers["hidden_size"]:
        raise json.error(
            "head_dim", f"hidden_size / num_attention_heads ({numbers['hidden_size']} features)", f"{width}"
        )
    return OlmoeConfig(**numbers, clip_qkv=json.above_zero("clip_qkv", json.optional("clip_qkv", float, None)))


def flex_olmo_config(json: ConfigReader) -> OlmoeConfig:
    """The config of FlexOlmo."""
    return OlmoeConfig(**olmoe_numbers(json, norm_eps=1e-6, theta=5e5, experts=7, per_token=5))


PORTS = {
    "olmoe": Port(Olmoe, olmoe_config, names=expert_names),
    "flex_olmo": Port(FlexOlmo, flex_olmo_config, names=expert_names),
}

LACKS = ("moe_intermediate_size", "shared_expert_intermediate_size")

GGUF = {
    "olmoe": expert_port("olmoe", *LACKS, normed=False, keys={"attention.clamp_kqv": "clip_qkv"}, bias="attention_bias")
}
