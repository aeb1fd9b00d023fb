r"""GPT-2: a pre-norm block with LayerNorms and an ungated MLP, and an embedding for each position.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. The embedding of a position is added to
that of the token, so that it is a part of x: the stream that enters the first block, in which the map is linear.
Checkpoints store weights as ``[in, out]``.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.mlp import UngatedMLP
from jaxlin.nn.modules import Embedding, LayerNorm
from jaxlin.nn.ropes import Rope
from jaxlin.porting.fields import MAX_COUNT, activation, one_layer_type
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import TensorRows, stacked_rows


@dataclass(frozen=True, kw_only=True)
class GPT2Config(Config):
    """`Config`, and whether attention scores are divided by the root of the features of a head."""

    scale_attn_weights: bool


class GPT2Block(PreNorm):
    """Llama's block with LayerNorms, an ungated MLP, and biases everywhere."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs) -> None:
        norm, scale = functools.partial(LayerNorm, eps=config.norm_eps), None if config.scale_attn_weights else 1.0
        attention = Attention(config, scale=scale, bias=True, out_bias=True, rngs=rngs)
        super().__init__(config, norm, attention, UngatedMLP(config, rngs=rngs))


class GPT2(Decoder):
    """The GPT-2 decoder."""

    Block = GPT2Block

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(config, rngs=rngs, **options)
        assert config.max_position_embeddings is not None
        self.embed_positions = Embedding(config.max_position_embeddings, config.hidden_size, rngs=rngs)

    def final_norm(self, config: Config) -> LayerNorm:
        """LayerNorm."""
        return LayerNorm(config.hidden_size, config.norm_eps)

    def embed(self, ids: Any | Int[Array, " t"], start: Any = 0) -> Float[Array, "t d"]:
        """The embeddings of the tokens and of their positions, added up: the local linear map is linear in the sum."""
        x = super().embed(ids, start)
        return x + self._positions(start + jnp.arange(x.shape[0]), x)

    def moved_embeddings(
        self, x: Float[Array, "*b d"], before: Int[Array, "*b"], after: Int[Array, "*b"]
    ) -> Float[Array, "*b d"]:
        """`x` with the embeddings of other positions."""
        return x - self._positions(before, x) + self._positions(after, x)

    def _positions(self, positions: Int[Array, "*b"], x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.embed_positions.weight[positions].astype(x.dtype)


KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""The names that other families have for keys of GPT-2, which transformers accepts for them."""


def gpt2_config(json: ConfigReader) -> GPT2Config:
    """The config of GPT-2."""
    for usual, own in KEYS.items():
        if json.peek(own) is None:
            json.override(own, json.peek(usual))
        json.expect(usual, json.peek(own))
    d, heads = json.positive("n_embd", 768), json.positive("n_head", 12)
    if d % heads or d // heads % 2 or d // heads > MAX_COUNT:
        raise json.error("n_head", f"a number of heads of an even number of features each (n_embd is {d})", str(heads))
    json.expect("add_cross_attention", False)
    json.leave_out("reorder_and_upcast_attn")  # scores and their softmax are in float32 at least here
    depth = json.positive("n_layer", 12, maximum=MAX_COUNT)
    one_layer_type(json, depth)
    # Nothing is rotated. A factor of queries and of keys is one of the scores twice, hence the root.
    by_layer = json.take("scale_attn_by_inverse_layer_idx", bool, False)
    ropes = tuple(Rope((0.0,) * (d // heads // 2), (layer + 1) ** -0.5 if by_layer else 1.0) for layer in range(depth))
    return GPT2Config(
        vocab_size=json.positive("vocab_size", 50257),
        hidden_size=d,
        intermediate_size=json.positive("n_inner", 4 * d),
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=d // heads,
        norm_eps=json.above_zero("layer_norm_epsilon", json.take("layer_norm_epsilon", float, 1e-5)),
        hidden_act=activation(json, "gelu_new", "activation_function"),
        max_position_embeddings=json.positive("n_positions", 1024),
        tie_word_embeddings=json.take("tie_word_embeddings", bool, True),
        ropes=ropes,
        windows=(None,) * depth,
        scale_attn_weights=json.take("scale_attn_weights", bool, True),
    )


def gpt2_names(config: GPT2Config) -> Names:
    """The names of a checkpoint, whose weights are stored transposed, and queries, keys and values in one tensor."""
    names: dict[str, str | TensorRows] = {"embed_tokens.weight": "wte.weight", "embed_positions.weight": "wpe.weight"}
    norms = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "norm": "ln_f"}
    projections = {"self_attn.o_proj": "attn.c_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    sizes = dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.hidden_size)
    for kind in ("weight", "bias"):
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in {**norms, **projections}.items()}
        names |= stacked_rows(f"attn.c_attn.{kind}", module="self_attn", transposed=True, **sizes)
    names |= {f"{ours}.weight": TensorRows(f"{theirs}.weight", transposed=True) for ours, theirs in projections.items()}
    return names


LEFT_OUT = {f"*.attn.{name}": "a mask of old files, which is always the same" for name in ("bias", "masked_bias")}
LEFT_OUT["multiple_choice_head.*"] = "the head for multiple choices"


PORTS = {"gpt2": Port(GPT2, gpt2_config, names=gpt2_names, bodies=("transformer.", ""), layers="h.", left_out=LEFT_OUT)}

GGUF = {
    "gpt2": GGUFPort(
        model_type="gpt2",
        keys={"attention.layer_norm_epsilon": "layer_norm_epsilon"},
        parts={"position_embd": "model.embed_positions", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
        derive=lambda metadata, config: {"intermediate_size": None, "n_inner": config["intermediate_size"]},
    ),
}
