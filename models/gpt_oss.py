r"""gpt-oss: experts with clipped branches and biases, sinks beside the keys, and a window in every other layer.

OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025. Sinks: Xiao et al., "Efficient Streaming Language Models with
Attention Sinks", 2024. An expert computes $\min(g, L)\,\sigma(\alpha \min(g, L)) \odot (\mathrm{clip}(u, -L, L) + 1)$,
which is $g \odot (u + 1)$ times a slope. The 1 is an additive constant, so it is a bias, which no checkpoint stores.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.llama import Llama
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.experts import ExpertConfig, ExpertLinear, ExpertMLP
from jaxlin.nn.layers import rows_for
from jaxlin.nn.modules import RMSNorm, parameter_value
from jaxlin.nn.routers import Route, TopSoftmaxRouter
from jaxlin.porting.fields import decoder_numbers, expert_numbers, layer_types, rope_of, windows
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import TensorRows, either, fused_experts


@dataclass(frozen=True)
class ClippedSlope:
    r"""The slope of a clipped branch, $\sigma(\alpha \min(g, L))$, with the ratios by which both branches are clipped.

    Attributes:
        alpha: $\alpha$, the gain of the sigmoid.
        limit: $L > 1$, so that $u + 1$ is clipped to an interval with 0 in it, and a ratio of it exists.
    """

    alpha: float
    limit: float

    def __call__(self, g: Float[Array, "t *b n"], u: Float[Array, "t *b n"]) -> Float[Array, "t *b n"]:
        r"""The value over $g \odot u$, where $u$ has the 1 in it."""
        low, high = 1 - self.limit, 1 + self.limit
        clipped = jnp.minimum(1, self.limit / jnp.maximum(g, self.limit))
        clipped_up = jnp.minimum(high / jnp.maximum(u, high), low / jnp.minimum(u, low))
        return jax.nn.sigmoid(self.alpha * jnp.minimum(g, self.limit)) * clipped * clipped_up


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(ExpertConfig):
    """`ExpertConfig`, whether attention has biases, and the slope of the experts."""

    attention_bias: bool
    slope: ClippedSlope


class One(nnx.Module):
    """The 1 that is added to the up branch of each expert, as a bias."""

    def __init__(self, experts: int) -> None:
        self.bias = nnx.Param(jnp.ones((experts, 1)))


class UpProjection(ExpertLinear):
    """The projection to the up branch, to which 1 is added."""

    def __init__(self, experts: int, in_features: int, out_features: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(experts, in_features, out_features, bias=True, rngs=rngs)
        self.one = One(experts)

    def biases(self, route: Route, like: Float[Array, "t *b k i"]) -> Float[Array, "t *c k o"] | None:
        """The bias of each expert of each token, and 1."""
        bias, one = super().biases(route, like), parameter_value(self.one.bias)
        return None if bias is None or one is None else bias + rows_for(one[route.experts].astype(like.dtype), like)


class GptOssMLP(ExpertMLP):
    """Experts with biases, whose branches are clipped."""

    def __init__(self, config: GptOssConfig, *, rngs: nnx.Rngs) -> None:
        d, experts = config.hidden_size, config.num_experts
        router = TopSoftmaxRouter(d, experts, config.num_experts_per_tok, bias=True, rngs=rngs)
        super().__init__(config, router, bias=True, rngs=rngs)
        self.experts.up_proj = UpProjection(experts, d, config.moe_intermediate_size, rngs=rngs)
        self.act = config.slope


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
