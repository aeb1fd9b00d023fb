r"""Phi-1, 1.5 and 2: one LayerNorm feeds attention and an ungated MLP side by side.

"Textbooks Are All You Need II: phi-1.5", 2023. Biases stand everywhere, so that the map is truly affine.
"""

from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array, Float

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.nn import layers
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.folding import elementwise_derivatives, fold, with_derivative
from jaxlin.nn.layers import add_to_stream
from jaxlin.nn.modules import Attention, HeadNormAttention, LayerNorm, Linear, Schedule
from jaxlin.nn.sites import InnerSite
from jaxlin.porting.fields import decoder_numbers, one_layer_type, rope_of
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class PhiConfig(Config):
    """`Config`, and whether queries and keys are normed."""

    qk_layernorm: bool


class UngatedMLP(nnx.Module):
    """`fc2(act(fc1(x)))`, the slope of the activation held."""

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs) -> None:
        self.act = config.hidden_act
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True, rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the MLP gives, before it is added."""
        if ctx.evaluation.fold and ctx.is_replay:
            return fold(x, self.fc2.weight[...], [(ctx.frozen("slope"), self.fc1.weight[...])])
        if ctx.evaluation.fold:
            return with_derivative(self, x, lambda mlp, x: mlp(x, Context()), UngatedMLP.derivative)
        return self.fc2(ctx.hook(InnerSite.NEURONS, layers.ungated(self.fc1(x), self.act, ctx)))

    def derivative(self, x: Float[Array, "t d"], v: Float[Array, "t *b d"]) -> Float[Array, "t *b d"]:
        """The derivative at `x` along `v`, folded."""
        (slope,) = elementwise_derivatives(lambda h: layers.ungated(h, self.act, Context()), self.fc1(x))
        return fold(v, self.fc2.weight[...], [(slope, self.fc1.weight[...])])


class PhiBlock(nnx.Module):
    """Attention and MLP read the same normed stream; there is no stream between them."""

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs) -> None:
        def norm(features: int) -> LayerNorm:
            return LayerNorm(features, config.norm_eps)

        self.input_layernorm = norm(config.hidden_size)
        if config.qk_layernorm:
            self.self_attn = HeadNormAttention(config, norm=norm, bias=True, out_bias=True, rngs=rngs)
        else:
            self.self_attn = Attention(config, bias=True, out_bias=True, rngs=rngs)
        self.mlp = UngatedMLP(config, rngs=rngs)

    def __call__(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "q *b d"]:
        """The residual stream after the block."""
        x = ctx.hook("resid_pre", x)
        h = self.input_layernorm(x, ctx.within("input_layernorm"))
        attn = ctx.hook("attn_out", self.self_attn(h, schedule, ctx.within("self_attn")))
        mlp = ctx.hook("mlp_out", self.mlp(h, ctx.within("mlp")))
        return ctx.hook("resid_post", add_to_stream(add_to_stream(x, attn), mlp))


class Phi(Decoder):
    """The decoder of Phi-1, 1.5 and 2."""

    Block = PhiBlock
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    head_bias = True

    def final_norm(self, config: Config) -> LayerNorm:
        """LayerNorm."""
        return LayerNorm(config.hidden_size, config.norm_eps)


def translate(json: ConfigReader) -> PhiConfig:
    """Phi-1, 1.5 and 2."""
    numbers = decoder_numbers(
        json, hidden_act="gelu_new", norm_eps=1e-5, eps_key="layer_norm_eps", max_position_embeddings=2048
    )
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"], partial=0.5)
    depth = numbers["num_hidden_layers"]
    one_layer_type(json, depth)
    return PhiConfig(
        **numbers,
        ropes=(rope,) * depth,
        windows=(None,) * depth,
        qk_layernorm=json.take("qk_layernorm", bool, False),
    )


NAMES = {
    "self_attn.o_proj.weight": "self_attn.dense.weight",
    "self_attn.o_proj.bias": "self_attn.dense.bias",
    "self_attn.q_norm.weight": "self_attn.q_layernorm.weight",
    "self_attn.q_norm.bias": "self_attn.q_layernorm.bias",
    "self_attn.k_norm.weight": "self_attn.k_layernorm.weight",
    "self_attn.k_norm.bias": "self_attn.k_layernorm.bias",
    "norm.weight": "final_layernorm.weight",
    "norm.bias": "final_layernorm.bias",
}

PORTS = {"phi": Port(Phi, translate, names=lambda config: NAMES)}

GGUF = {
    "phi2": GGUFPort(
        model_type="phi",
        partial=True,
        keys={"attention.layer_norm_epsilon": "layer_norm_eps"},
        parts={
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
            "output_norm": "model.final_layernorm",
        },
        derive=lambda given, config: {"partial_rotary_factor": config.get("partial_rotary_factor", 1.0)},
    ),
}
