r"""Qwen 3.5 and later with experts: the blocks of `jaxlin.models.qwen_hybrid`, in which the MLP is a mixture.

The router takes the largest of a softmax over all experts, whose weights are always divided by their sum. A shared
expert, times a sigmoid of its own, is added.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.qwen3_5 import HYBRID_GGUF, OPTIONS, qwen3_5_numbers, text_half
from jaxlin.models.qwen_hybrid import QwenHybrid, QwenHybridConfig, hybrid_names
from jaxlin.models.qwen_moe import expert_names
from jaxlin.nn.experts import ExpertConfig, ExpertMLP
from jaxlin.nn.routers import SoftmaxRouter
from jaxlin.porting.fields import expert_numbers
from jaxlin.porting.gguf_keys import check_gating, expert_keys
from jaxlin.porting.hybrid_fields import hybrid_keys
from jaxlin.porting.port import Names, Port

WIDTH = 512
"""The hidden features of an expert, and of the shared one, if config.json has none."""


@dataclass(frozen=True, kw_only=True)
class QwenHybridMoeConfig(QwenHybridConfig, ExpertConfig):
    """`QwenHybridConfig`, and the sizes of the experts."""


class QwenHybridMoe(QwenHybrid):
    """The decoder of Qwen 3.5 with experts."""

    def make_mlp(self, config: QwenHybridMoeConfig, kind: str, rngs: nnx.Rngs) -> ExpertMLP:
        """Experts, and a shared one."""
        sizes = config.hidden_size, config.num_experts, config.num_experts_per_tok
        router = SoftmaxRouter(*sizes, renormalize=True, rngs=rngs)
        return ExpertMLP(config, router, gated_shared=True, rngs=rngs)


def qwen3_5_moe_text_config(json: ConfigReader) -> QwenHybridMoeConfig:
    """The config of the text model alone. Every layer has experts, and so there is no width of another MLP."""
    options: dict[str, Any] = {"intermediate_size": WIDTH, "width_key": "moe_intermediate_size"}
    return QwenHybridMoeConfig(
        **qwen3_5_numbers(json, num_key_value_heads=2, **options),
        **expert_numbers(json, num_experts=256, num_experts_per_tok=8, width=WIDTH, count_keys=("num_experts",)),
        shared_expert_intermediate_size=json.positive("shared_expert_intermediate_size", WIDTH),
    )


def qwen3_5_moe_config(json: ConfigReader) -> QwenHybridMoeConfig:
    """The config of the text half of the wrapper."""
    return qwen3_5_moe_text_config(text_half(json))


def hybrid_moe_names(config: QwenHybridMoeConfig) -> Names:
    """Those of Qwen 3.5; experts are fused in the files of the hub, and single as transformers writes them."""
    return {**hybrid_names(config), **expert_names(config)}


MOE_OPTIONS: Mapping[str, Any] = {**OPTIONS, "names": hybrid_moe_names}

PORTS = {
    "qwen3_5_moe": Port(QwenHybridMoe, qwen3_5_moe_config, **MOE_OPTIONS),
    "qwen3_5_moe_text": Port(QwenHybridMoe, qwen3_5_moe_text_config, **MOE_OPTIONS),
}


def moe_keys(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Qwen 3.5, in a file whose router is a softmax."""
    check_gating(metadata, "softmax")
    return hybrid_keys(metadata, config)


HYBRID_MOE_GGUF = replace(
    HYBRID_GGUF,
    model_type="qwen3_5_moe_text",
    keys={**HYBRID_GGUF.keys, **expert_keys("norm_topk_prob", "routed_scaling_factor")},
    read=(*HYBRID_GGUF.read, "expert_gating_func"),
    optional=("feed_forward_length",),
    fixed={"expert_weights_norm": True},
    derive=moe_keys,
)
GGUF = {"qwen35moe": HYBRID_MOE_GGUF}
