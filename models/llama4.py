r"""Llama 4: queries and keys normed after the rotation, attention in chunks, and one expert of many for each token.

"The Llama 4 herd", model card of Meta, 2025. Covers Scout, whose layers all have experts, and Maverick, where every
second layer has. Each layer rotates and sees the tokens of its chunk, or neither ("NoPE"); queries of the latter grow
with their position. The weight of an expert, a sigmoid, multiplies what it reads.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.gemma3 import HEADS, TEXT
from jaxlin.models.llama import Llama
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.experts import ExpertConfig, ExpertMLP
from jaxlin.nn.group_routers import SigmoidRouter
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.nope_attention import NoPEAttention
from jaxlin.nn.ropes import no_rope
from jaxlin.porting.fields import decoder_numbers, layer_types, rope_of, rotating_layers
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import either, fused_experts, paired_rows, single_experts


@dataclass(frozen=True, kw_only=True)
class Llama4Config(ExpertConfig):
    r"""`ExpertConfig`, whose `intermediate_size` is that of dense layers.

    Attributes:
        attention_bias: whether queries, keys, values and outputs have biases.
        use_qk_norm: whether queries and keys are normed in layers that rotate.
        query_beta: $\beta$ of `jaxlin.nn.layers.query_growth`; 0 for queries that do not grow.
        query_length: its $p_0$, tokens.
    """

    attention_bias: bool
    use_qk_norm: bool
    query_beta: float
    query_length: int


class Llama4Block(PreNorm):
    """Llama's block, with a dense MLP or with experts and a shared one."""

    def __init__(self, config: Llama4Config, *, kind: str, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        attention = NoPEAttention(
            config,
            eps=config.norm_eps if config.use_qk_norm else None,
            **{"beta": config.query_beta, "length": config.query_length},
            **dict.fromkeys(("bias", "out_bias"), config.attention_bias),
            rngs=rngs,
        )
        router = SigmoidRouter(config.hidden_size, config.num_experts, config.num_experts_per_tok, rngs=rngs)
        experts = kind != "dense"
        mlp = ExpertMLP(config, router, weighs_input=True, rngs=rngs) if experts else GatedMLP(config, rngs=rngs)
        super().__init__(config, norm, attention, mlp)


class Llama4(Llama):
    """The text decoder of Llama 4."""

    Block = Llama4Block

    def make_block(self, config: Llama4Config, kind: str, rngs: nnx.Rngs) -> Llama4Block:
        """A block with a dense MLP (``"dense"``) or with experts (``"experts"``)."""
        return Llama4Block(config, kind=kind, rngs=rngs)


def llama4_config(json: ConfigReader) -> Llama4Config:
    """The config of the text model, with transformers' defaults."""
    numbers = decoder_numbers(json, norm_eps=1e-5, num_key_value_heads=8, head_dim=128, max_position_embeddings=131_072)
    depth, head_dim, f = numbers["num_hidden_layers"], numbers["head_dim"], numbers["intermediate_size"]
    numbers["intermediate_size"] = json.positive("intermediate_size_mlp", 16384)
    if json.peek("no_rope_layers") == []:  # which transformers reads as none
        json.override("no_rope_layers", None)
    step, rotates = json.positive("interleave_moe_layer_step", 1), rotating_layers(json, depth)
    with_experts = json.take("moe_layers", list, [*range(step - 1, depth, step)])
    chunk = json.positive_or_none("attention_chunk_size", 8192)
    types = layer_types(json, depth, lambda i: chunk is not None and rotates[i], local="chunked_attention")
    if chunk is None and "chunked_attention" in types:
        raise json.error("attention_chunk_size", "a number of tokens, as some layers have chunks", "none")
    experts, per_token = json.positive("num_local_experts", 16), json.positive("num_experts_per_tok", 1)
    if per_token > experts:
        raise json.error("num_experts_per_tok", f"at most {experts} experts", str(per_token))
    rope = rope_of(json, head_dim, numbers["max_position_embeddings"], theta=5e5)
    beta, grows = json.take("attn_scale", float, 0.1), json.take("attn_temperature_tuning", bool, True)
    return Llama4Config(
        **numbers,
        ropes=tuple(rope if rotates[i] else no_rope(head_dim) for i in range(depth)),
        windows=(None,) * depth,
        chunks=tuple(chunk if kind == "chunked_attention" else None for kind in types),
        layer_kinds=tuple("experts" if i in with_experts else "dense" for i in range(depth)),
        num_experts=experts,
        num_experts_per_tok=per_token,
        moe_intermediate_size=f,
        shared_expert_intermediate_size=f,
        attention_bias=json.take("attention_bias", bool, False),
        use_qk_norm=json.take("use_qk_norm", bool, True),
        query_beta=beta if grows else 0.0,
        query_length=json.positive("floor_scale", 8192),
    )


def llama4_wrapper_config(json: ConfigReader) -> Llama4Config:
    """The config of the text half of the multimodal wrapper."""
    json.leave_out("vision_config", *(f"{at}_token_{end}" for at in ("boi", "eoi", "image") for end in ("id", "index")))
    return llama4_config(json.part("text_config"))


def stored(config: Llama4Config) -> Names:
    """Where a checkpoint has the parameters: neighbours rotate together; quantised experts are taken apart first."""
    fused = fused_experts("mlp.experts", config.moe_intermediate_size, "feed_forward.experts", transposed=True)
    parts = [f"{expert}{part}_proj.weight" for expert in ("", "shared_expert.") for part in ("gate", "up", "down")]
    return {
        **paired_rows(config),
        "mlp.gate.weight": "feed_forward.router.weight",
        **{f"mlp.{part}": f"feed_forward.{part}" for part in parts},
        **either(fused, single_experts("mlp.experts", "feed_forward.experts")),
    }


VISION = {f"{part}.*": "the vision half of the model" for part in ("vision_model", "multi_modal_projector")}

PORTS = {
    "llama4_text": Port(Llama4, llama4_config, names=stored),
    "llama4": Port(Llama4, llama4_wrapper_config, names=stored, bodies=TEXT, heads=HEADS, left_out=VISION),
}


def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The norms of queries and keys, which the model with 128 experts lacks; no metadata says so."""
    return {"use_qk_norm": metadata.get("expert_count") != 128}


KEYS = {**RMS_NORM, "expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
KEYS |= {"feed_forward_length": "intermediate_size_mlp", "expert_feed_forward_length": "intermediate_size"}
KEYS |= {"interleave_moe_layer_step": "interleave_moe_layer_step"}

GGUF = {"llama4": GGUFPort(model_type="llama4_text", keys=KEYS, derive=derive)}
