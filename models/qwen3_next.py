r"""Qwen3-Next: the blocks of `jaxlin.models.qwen_hybrid`, in which the MLP is a mixture of experts.

Qwen Team, "Qwen3-Next", 2025. The router and the layers with a dense MLP are those of `jaxlin.models.qwen_moe`. A
checkpoint stores the projections of the delta rule in two tensors, key head by key head: queries, keys, values and
gates in one, strengths and decays in the other. GGUF files have the first of them in order, as Qwen 3.5's are.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.qwen3_5_moe import HYBRID_MOE_GGUF, moe_keys
from jaxlin.models.qwen_hybrid import DRAFTS, QwenHybrid, QwenHybridConfig, hybrid_names, hybrid_numbers
from jaxlin.models.qwen_moe import QwenMoeConfig, expert_names, qwen_mlp, sparse_layers
from jaxlin.nn.experts import DENSE, ExpertMLP
from jaxlin.nn.mlp import GatedMLP
from jaxlin.porting.fields import expert_numbers
from jaxlin.porting.hybrid_fields import TILED
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import either, stacked_rows


@dataclass(frozen=True, kw_only=True)
class Qwen3NextConfig(QwenHybridConfig, QwenMoeConfig):
    """`QwenHybridConfig` and `QwenMoeConfig`."""


class Qwen3Next(QwenHybrid):
    """The decoder of Qwen3-Next."""

    def make_mlp(self, config: Qwen3NextConfig, kind: str, rngs: nnx.Rngs) -> GatedMLP | ExpertMLP:
        """Experts and a shared one, or a dense MLP."""
        return qwen_mlp(config, kind, rngs)


def qwen3_next_config(json: ConfigReader) -> Qwen3NextConfig:
    """The config of Qwen3-Next. The kind of a layer names its mixer, and its MLP if that is dense."""
    # Written in files; transformers takes the window away from these layers.
    json.leave_out("use_sliding_window", "sliding_window")
    numbers = hybrid_numbers(json, num_key_value_heads=2, vocab_size=151_936, intermediate_size=5632)
    mixers = numbers.pop("layer_kinds")
    mlps = sparse_layers(json, len(mixers)) or ("",) * len(mixers)
    kinds = (f"{mixer}, {mlp}" if mlp == DENSE else mixer for mixer, mlp in zip(mixers, mlps, strict=True))
    return Qwen3NextConfig(
        **numbers,
        **expert_numbers(json, num_experts=512, num_experts_per_tok=10, width=512, count_keys=("num_experts",)),
        layer_kinds=tuple(kinds),
        shared_expert_intermediate_size=json.positive("shared_expert_intermediate_size", 512),
        norm_topk_prob=json.take("norm_topk_prob", bool, True),
    )


def qwen3_next_names(config: Qwen3NextConfig) -> Names:
    """Those of Qwen 3.5 but for the projections, which are fused key head by key head; experts fused or single."""
    sizes = config.delta_net
    group = sizes.value_heads // sizes.key_heads
    key, values = sizes.key_dim, group * sizes.value_dim
    rows = functools.partial(stacked_rows, heads=sizes.key_heads)
    fused = rows("linear_attn.in_proj_qkvz.weight", q_proj=key, k_proj=key, v_proj=values, g_proj=values)
    in_order = hybrid_names(config)
    return {
        **in_order,
        **either(fused, {path: in_order[path] for path in fused}),
        **rows("linear_attn.in_proj_ba.weight", b_proj=group, a_proj=group),
        **expert_names(config),
    }


PORTS = {"qwen3_next": Port(Qwen3Next, qwen3_next_config, names=qwen3_next_names, left_out=DRAFTS)}


def gguf_keys(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Qwen 3.5 with experts, but that value heads keep their order; weights always sum to 1 in llama.cpp."""
    return {**moe_keys(metadata, config), TILED: False, "norm_topk_prob": True}


GGUF = {
    "qwen3next": replace(
        HYBRID_MOE_GGUF,
        model_type="qwen3_next",
        parts={
            **HYBRID_MOE_GGUF.parts,
            "ssm_ba": "linear_attn.in_proj_ba",
            "ssm_in": "linear_attn.in_proj_qkvz",  # of the first files, which have it as it was
        },
        derive=gguf_keys,
    )
}
