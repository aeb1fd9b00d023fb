r"""Mistral 4: latent attention whose queries grow with their position, and experts in groups.

The Mistral Small 4 model card, 2026. It is DeepSeek V3 with a softmax in place of sigmoids, with queries scaled by
$1 + \beta \ln(1 + \lfloor p / p_0 \rfloor)$ at position $p$, and with experts in all layers unless the config says
otherwise. Files of ``mistral3`` wrap it.
"""

from dataclasses import replace
from typing import Any

from jaxlin.checkpoint.config import ConfigReader, is_number
from jaxlin.common.printable import quoted
from jaxlin.models.deepseek import Deepseek, DeepseekConfig, stored
from jaxlin.nn.group_routers import GroupRouter
from jaxlin.porting.fields import rope_of, rope_parameters
from jaxlin.porting.latent_fields import group_numbers, latent_numbers
from jaxlin.porting.latent_gguf import DEEPSEEK_GGUF, mistral_keys
from jaxlin.porting.port import Port

TRAINED, BETA, SHARE = "original_max_position_embeddings", "llama_4_scaling_beta", "partial_rotary_factor"

YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 128.0, TRAINED: 8192, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale_all_dim": 1.0, "mscale": 1.0, BETA: 0.1,
}  # fmt: skip
"""The rope parameters of a config that has none."""


class Mistral4(Deepseek):
    """The Mistral 4 decoder."""

    Router = GroupRouter


def mistral4_config(json: ConfigReader) -> DeepseekConfig:
    """The config of Mistral 4, with transformers' defaults."""
    rotated, rest = json.positive("qk_rope_head_dim", 64), json.positive("qk_nope_head_dim", 64)
    head_dim = rotated + rest
    share = rotated / head_dim
    if json.peek("rope_scaling"):
        share = json.take(SHARE, float, 1.0)
    json.override(SHARE, None)  # beside `rope_parameters` it means nothing
    parameters: dict[str, Any] = {SHARE: share, **(rope_parameters(json) or YARN)}
    numbers = latent_numbers(
        json, parameters, rotated=rotated, head_dim=head_dim, rest=rest,
        kv_lora_rank=256, q_lora_rank=1024, v_head_dim=128, num_key_value_heads=32, max_position_embeddings=1_048_576,
    )  # fmt: skip
    depth, length = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    groups = group_numbers(
        json, depth, n_routed_experts=128, num_experts_per_tok=4, n_group=1, topk_group=1, moe_intermediate_size=2048,
        first_k_dense_replace=0, scale=1.0,
    )  # fmt: skip
    kind, share = parameters.get("rope_type") or parameters.get("type"), parameters[SHARE]
    if kind != "yarn":
        raise json.error("rope_parameters", "a rope_type yarn, as this family needs its trained length", quoted(kind))
    if not is_number(share) or int(head_dim * share) != rotated:
        raise json.error("rope_parameters", f"a {SHARE} of {rotated} features of {head_dim}", quoted(share))
    beta, trained = parameters.get(BETA), parameters.get(TRAINED, length)
    if beta is None or not is_number(beta) or type(trained) is not int or trained < 1:
        raise json.error(
            "rope_parameters", f"numbers under {BETA} and {TRAINED}", f"{quoted(beta)} and {quoted(trained)}"
        )
    rope = rope_of(json, rotated, length, default=YARN, replace={SHARE: 1.0}, extra=(BETA,))
    return DeepseekConfig(
        **numbers,
        **groups,
        ropes=(rope,) * depth,
        rope_interleave=json.take("rope_interleave", bool, True),
        query_beta=float(beta),
        query_length=trained,
    )


PORTS = {"mistral4": Port(Mistral4, mistral4_config, names=stored)}

GGUF = {"mistral4": replace(DEEPSEEK_GGUF, model_type="mistral4", derive=mistral_keys)}
