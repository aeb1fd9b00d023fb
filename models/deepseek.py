r"""DeepSeek V3: latent attention, and experts in groups that are chosen by sigmoids with a correction.

DeepSeek-AI, "DeepSeek-V3 Technical Report", arXiv 2412.19437. The first layers have a dense MLP, the others have
experts, beside which all tokens pass through a shared one. Covers V3 and R1. The module that predicts further tokens
is left out.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.llama import Llama
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.experts import ExpertConfig, ExpertMLP
from jaxlin.nn.group_routers import GroupRouter, SigmoidGroupRouter
from jaxlin.nn.latent_attention import LatentAttention, LatentConfig
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.porting.fields import rope_of, rope_parameters
from jaxlin.porting.latent_fields import group_numbers, latent_numbers, latent_rows
from jaxlin.porting.latent_gguf import DEEPSEEK_GGUF
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import either, fused_experts, single_experts


@dataclass(frozen=True, kw_only=True)
class DeepseekConfig(LatentConfig, ExpertConfig):
    """`LatentConfig` and `ExpertConfig`, and how experts are chosen: see `jaxlin.nn.group_routers.GroupRouter`.

    Attributes:
        n_group: the groups of experts.
        topk_group: the groups among whose experts a token chooses.
        norm_topk_prob: whether the weights of a token are divided by their sum.
        routed_scaling_factor: the factor of the weights.
        rope_interleave: whether a checkpoint has the two features that rotate together in neighbouring rows.
    """

    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    rope_interleave: bool


class DeepseekBlock(PreNorm):
    """Llama's block with latent attention, and with a dense MLP or with experts."""

    def __init__(self, config: DeepseekConfig, router: type[GroupRouter], *, kind: str, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        attention = LatentAttention(config, rngs=rngs)
        if kind == "dense":
            mlp = GatedMLP(config, rngs=rngs)
        else:
            gate = router(
                *(config.hidden_size, config.num_experts, config.num_experts_per_tok),
                groups=config.n_group,
                chosen_groups=config.topk_group,
                renormalize=config.norm_topk_prob,
                scale=config.routed_scaling_factor,
                rngs=rngs,
            )
            mlp = ExpertMLP(config, gate, rngs=rngs)
        super().__init__(config, norm, attention, mlp)


class Deepseek(Llama):
    """The DeepSeek V3 decoder."""

    Block = DeepseekBlock
    Router: ClassVar[type[GroupRouter]] = SigmoidGroupRouter

    def make_block(self, config: DeepseekConfig, kind: str, rngs: nnx.Rngs) -> DeepseekBlock:
        """A block with a dense MLP (``"dense"``) or with experts (``"experts"``)."""
        return DeepseekBlock(config, self.Router, kind=kind, rngs=rngs)


def deepseek_config(json: ConfigReader) -> DeepseekConfig:
    """The config of DeepSeek V3, with transformers' defaults."""
    json.leave_out("moe_layer_freq", "ep_size", "seq_aux")  # read by the code of the authors, not by transformers
    rotated, rest = json.positive("qk_rope_head_dim", 64), json.positive("qk_nope_head_dim", 128)
    numbers = latent_numbers(
        json, rope_parameters(json), rotated=rotated, head_dim=rotated, rest=rest,
        kv_lora_rank=512, q_lora_rank=1536, v_head_dim=128, num_key_value_heads=128, max_position_embeddings=4096,
    )  # fmt: skip
    depth = numbers["num_hidden_layers"]
    groups = group_numbers(
        json, depth, n_routed_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4, moe_intermediate_size=2048,
        first_k_dense_replace=3, scale=2.5,
    )  # fmt: skip
    rope = rope_of(json, rotated, numbers["max_position_embeddings"])
    interleaved = json.take("rope_interleave", bool, True)
    return DeepseekConfig(**numbers, **groups, ropes=(rope,) * depth, rope_interleave=interleaved)


def stored(config: DeepseekConfig) -> Names:
    """Where a checkpoint has the parameters; experts are apart, or all in one tensor."""
    shared = {f"mlp.shared_expert.{part}.weight": f"mlp.shared_experts.{part}.weight" for part in PROJECTIONS}
    fused = fused_experts("mlp.experts", config.moe_intermediate_size)
    experts = either(single_experts("mlp.experts"), fused)
    return {**latent_rows(config, interleaved=config.rope_interleave), **shared, **experts}


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
FURTHER = {"model.layers.61.*": "the module that predicts further tokens"}

PORTS = {"deepseek_v3": Port(Deepseek, deepseek_config, names=stored, left_out=FURTHER)}

GGUF = {"deepseek2": DEEPSEEK_GGUF}
