r"""Phi: Llama's block with fused projections (3, 4), or a parallel block of LayerNorms and biases (1.5, 2).

"Phi-3 Technical Report", 2024; "Phi-4 Technical Report", 2024; "Textbooks Are All You Need II: phi-1.5", 2023.

- ``phi3`` (Phi-3, 3.5, Phi-4, Phi-4-mini and their reasoning models): a checkpoint keeps queries, keys and values as
  one tensor, gate and up as another. Split, it is Llama, with partial rotation and LongRoPE where the config says so.
- ``phi`` (Phi-1, 1.5, 2): one LayerNorm feeds attention and an ungated MLP side by side, with biases everywhere: a
  truly affine map.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array, Float

from jaxlin import layers
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.config import Config
from jaxlin.decoder import Decoder
from jaxlin.hold import Hold
from jaxlin.layers import residual
from jaxlin.models.mistral import Mistral, MistralConfig
from jaxlin.modules import Attention, HeadNormAttention, LayerNorm, Linear, Schedule
from jaxlin.port import Port, Rows, decoder_numbers, rope_of, stacked_rows


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

    def __call__(self, x: Float[Array, "t d"], hold: Hold) -> Float[Array, "t d"]:
        """What the MLP gives, before it is added."""
        if hold.fold:
            return layers.folded(x, self.fc2.weight[...], [(hold.kept("slope"), self.fc1.weight[...])])
        return self.fc2(hold.site("neurons", layers.ungated(self.fc1(x), self.act, hold)))


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

    def __call__(self, x: Float[Array, "t d"], at: Schedule, hold: Hold) -> Float[Array, "q d"]:
        """The residual stream after the block."""
        x = hold.site("resid_pre", x)
        h = self.input_layernorm(x, hold.within("input_layernorm"))
        attn = hold.site("attn_out", self.self_attn(h, at, hold.within("self_attn")))
        mlp = hold.site("mlp_out", self.mlp(h, hold.within("mlp")))
        return hold.site("resid_post", residual(residual(x, attn), mlp))


class Phi(Decoder):
    """The decoder of Phi-1, 1.5 and 2."""

    Block = PhiBlock
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    head_bias = True

    def final_norm(self, config: Config) -> LayerNorm:
        """LayerNorm."""
        return LayerNorm(config.hidden_size, config.norm_eps)


def translate3(json: ConfigReader) -> MistralConfig:
    """Phi-3 and 4: Llama without biases, perhaps with a window, as Mistral."""
    numbers = decoder_numbers(json, norm_eps=1e-5, max_position_embeddings=4096)
    original = json.positive("original_max_position_embeddings", 4096)
    depth, length = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    window = json.optional("sliding_window", int, None)
    if window is not None:
        json.positive("sliding_window")
    # The first files call LongRoPE "su" or "yarn"; the trained length stands outside the rope parameters.
    given = {"original_max_position_embeddings": original}
    for dialect in ("rope_scaling", "rope_parameters"):
        kind = (json.peek(dialect) or {}).get("rope_type") or (json.peek(dialect) or {}).get("type")
        if kind in ("su", "yarn"):
            given["rope_type"] = "longrope"
    rope = rope_of(json, numbers["head_dim"], length, partial=1.0, replace=given)
    return MistralConfig(**numbers, ropes=(rope,) * depth, windows=(window,) * depth)


def fused(config: MistralConfig) -> Mapping[str, Rows]:
    """Which rows of a checkpoint's tensors are queries, keys and values, gate and up."""
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    f = config.intermediate_size
    return {
        **stacked_rows("self_attn.qkv_proj.weight", q_proj=q, k_proj=kv, v_proj=kv),
        **stacked_rows("mlp.gate_up_proj.weight", gate_proj=f, up_proj=f),
    }


def translate(json: ConfigReader) -> PhiConfig:
    """Phi-1, 1.5 and 2."""
    numbers = decoder_numbers(
        json, hidden_act="gelu_new", norm_eps=1e-5, eps_key="layer_norm_eps", max_position_embeddings=2048
    )
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"], partial=0.5)
    depth = numbers["num_hidden_layers"]
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

PORTS = {
    "phi3": Port(Mistral, translate3, names=fused),
    "phi": Port(Phi, translate, names=lambda config: NAMES),
}
