r"""GPT-NeoX, as Pythia is: attention and an ungated MLP side by side, each with a LayerNorm; biases everywhere.

Biderman et al., "Pythia", 2023; Black et al., "GPT-NeoX-20B", 2022. A quarter of each head is rotated. A checkpoint
has the queries, keys and values of a head in neighbouring rows of one tensor. Without `use_parallel_residual` the MLP
reads what attention has added.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import Parallel, PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.mlp import UngatedMLP
from jaxlin.nn.modules import LayerNorm
from jaxlin.porting.fields import decoder_numbers, one_layer_type, rope_of
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port
from jaxlin.porting.tensor_rows import TensorRows, stacked_rows


@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(Config):
    """`Config`, whether attention has biases, and whether attention and the MLP stand side by side."""

    attention_bias: bool
    use_parallel_residual: bool


def gpt_neox_parts(config: GPTNeoXConfig, rngs: nnx.Rngs) -> tuple[GPTNeoXConfig, Any, Attention, UngatedMLP]:
    """The arguments of a block."""
    bias = config.attention_bias
    attention = Attention(config, bias=bias, out_bias=bias, rngs=rngs)
    return config, functools.partial(LayerNorm, eps=config.norm_eps), attention, UngatedMLP(config, rngs=rngs)


class GPTNeoXBlock(Parallel):
    """A LayerNorm feeds attention and another one the MLP, side by side."""

    def __init__(self, config: GPTNeoXConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(*gpt_neox_parts(config, rngs), norms=2)


class SequentialGPTNeoXBlock(PreNorm):
    """The same parts, the MLP after attention."""

    def __init__(self, config: GPTNeoXConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(*gpt_neox_parts(config, rngs))


class GPTNeoX(Decoder):
    """The decoder of GPT-NeoX and Pythia."""

    Block = GPTNeoXBlock

    def final_norm(self, config: Config) -> LayerNorm:
        """LayerNorm."""
        return LayerNorm(config.hidden_size, config.norm_eps)


class SequentialGPTNeoX(GPTNeoX):
    """The decoder of a config without `use_parallel_residual`."""

    Block = SequentialGPTNeoXBlock


def gpt_neox(config: GPTNeoXConfig, **options: Any) -> GPTNeoX:
    """The decoder of a config."""
    return (GPTNeoX if config.use_parallel_residual else SequentialGPTNeoX)(config, **options)


def gpt_neox_config(json: ConfigReader) -> GPTNeoXConfig:
    """The config of GPT-NeoX, whose keys of the base and of the rotated share are its own."""
    # transformers reads neither of these, which other families have.
    json.override("num_key_value_heads", None)
    json.override("rope_theta", json.take("rotary_emb_base", float, 1e4))
    json.override("partial_rotary_factor", json.take("rotary_pct", float, 0.25))
    numbers = decoder_numbers(
        json, hidden_act="gelu", norm_eps=1e-5, eps_key="layer_norm_eps", max_position_embeddings=2048
    )
    if numbers["head_dim"] * numbers["num_attention_heads"] != numbers["hidden_size"]:
        raise json.error("head_dim", "hidden_size / num_attention_heads, a whole number", str(numbers["head_dim"]))
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"], partial=0.25)
    depth = numbers["num_hidden_layers"]
    one_layer_type(json, depth)
    return GPTNeoXConfig(
        **numbers,
        ropes=(rope,) * depth,
        windows=(None,) * depth,
        attention_bias=json.take("attention_bias", bool, True),
        use_parallel_residual=json.take("use_parallel_residual", bool, True),
    )


def gpt_neox_names(config: GPTNeoXConfig) -> Mapping[str, str | TensorRows]:
    """The names of a checkpoint, and the rows of its fused tensor that are queries, keys and values."""
    modules = {
        "embed_tokens": "embed_in",
        "norm": "final_layer_norm",
        "self_attn.o_proj": "attention.dense",
        "mlp.fc1": "mlp.dense_h_to_4h",
        "mlp.fc2": "mlp.dense_4h_to_h",
    }
    names: dict[str, str | TensorRows] = {}
    for kind in ("weight", "bias"):
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items()}
        fused, heads = f"attention.query_key_value.{kind}", config.num_attention_heads
        sizes = dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.head_dim)
        names |= stacked_rows(fused, heads=heads, module="self_attn", **sizes)
    return names


BUFFERS = {f"*.attention.{name}": "a mask of old files, which is always the same" for name in ("bias", "masked_bias")}

PORTS = {
    "gpt_neox": Port(
        gpt_neox,
        gpt_neox_config,
        names=gpt_neox_names,
        bodies=("gpt_neox.", ""),
        heads=("embed_out.", "lm_head."),
        left_out=BUFFERS,
    ),
}

GGUF = {
    "gptneox": GGUFPort(
        model_type="gpt_neox",
        partial=True,
        keys={"attention.layer_norm_epsilon": "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
        parts={"ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
        derive=lambda metadata, config: {
            "rotary_pct": config.get("partial_rotary_factor", 1.0),
            "rotary_emb_base": config.get("rope_theta"),
        },
    ),
}
