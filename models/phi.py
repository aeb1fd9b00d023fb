r"""Phi-1, 1.5 and 2: one LayerNorm feeds attention and an ungated MLP side by side.

"Textbooks Are All You Need II: phi-1.5", 2023. Biases stand everywhere, so that the map is truly affine.
"""

import functools
from dataclasses import dataclass

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.nn.attention import Attention, HeadNormAttention
from jaxlin.nn.blocks import Parallel
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.mlp import UngatedMLP
from jaxlin.nn.modules import LayerNorm
from jaxlin.porting.fields import decoder_numbers, one_layer_type, rope_of
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class PhiConfig(Config):
    """`Config`, and whether queries and keys are normed."""

    qk_layernorm: bool


class PhiBlock(Parallel):
    """One LayerNorm feeds attention and an ungated MLP, both with biases."""

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(LayerNorm, eps=config.norm_eps)
        if config.qk_layernorm:
            attention = HeadNormAttention(config, norm=norm, bias=True, out_bias=True, rngs=rngs)
        else:
            attention = Attention(config, bias=True, out_bias=True, rngs=rngs)
        super().__init__(config, norm, attention, UngatedMLP(config, rngs=rngs))


class Phi(Decoder):
    """The decoder of Phi-1, 1.5 and 2."""

    Block = PhiBlock
    head_bias = True

    def final_norm(self, config: Config) -> LayerNorm:
        """LayerNorm."""
        return LayerNorm(config.hidden_size, config.norm_eps)


def phi_config(json: ConfigReader) -> PhiConfig:
    """The config of Phi-1, 1.5 and 2."""
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

PORTS = {"phi": Port(Phi, phi_config, names=lambda config: NAMES)}

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
        derive=lambda metadata, config: {"partial_rotary_factor": config.get("partial_rotary_factor", 1.0)},
    ),
}
