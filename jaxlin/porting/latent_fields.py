"""The fields of latent attention and of experts in groups, which DeepSeek V3 and Mistral 4 share, and their tensors."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxlin.checkpoint.config import ConfigReader, is_number
from jaxlin.common.printable import quoted
from jaxlin.nn.latent_attention import LatentConfig
from jaxlin.porting.fields import decoder_numbers
from jaxlin.porting.tensor_rows import TensorRows, halves_of_pairs, stacked_rows


def latent_numbers(
    json: ConfigReader, parameters: Mapping[str, Any], *, rotated: int, head_dim: int, rest: int, **defaults: int | None
) -> dict[str, Any]:
    """The fields of `LatentConfig` and of `Config` but for the ropes.

    Args:
        json: the config.
        parameters: the rope parameters; those of YaRN may scale the scores.
        rotated: how many features of a query or key are rotated.
        head_dim: what transformers writes under this key.
        rest: how many features of a query or key are not rotated.
        defaults: transformers' defaults of the other keys.
    """
    json.expect("head_dim", head_dim)
    json.expect("qk_head_dim", rotated + rest)
    json.override("head_dim", rotated + rest)
    shared = ("num_key_value_heads", "max_position_embeddings")
    numbers = decoder_numbers(json, **{key: defaults[key] for key in shared})  # type: ignore[arg-type]
    heads, depth = numbers["num_attention_heads"], numbers["num_hidden_layers"]
    if numbers["num_key_value_heads"] != heads:
        other = str(numbers["num_key_value_heads"])
        raise json.error("num_key_value_heads", f"num_attention_heads ({heads}), as each head has its own", other)
    return {
        **numbers,
        "kv_lora_rank": json.positive("kv_lora_rank", defaults["kv_lora_rank"]),
        "q_lora_rank": json.positive_or_none("q_lora_rank", defaults["q_lora_rank"]),
        "qk_rope_head_dim": rotated,
        "v_head_dim": json.positive("v_head_dim", defaults["v_head_dim"]),
        "attention_scale": (rotated + rest) ** -0.5 * _score_factor(json, parameters),
        "attention_bias": json.take("attention_bias", bool, False),
        "windows": (None,) * depth,
    }


def _score_factor(json: ConfigReader, parameters: Mapping[str, Any]) -> float:
    r"""$(1 + 0.1\,m \ln s)^2$ for YaRN's `mscale_all_dim` $m$ and `factor` $s$; 1 without them."""
    mscale, factor = parameters.get("mscale_all_dim") or 0.0, parameters.get("factor", "none")
    if not mscale:
        return 1.0
    if not is_number(mscale) or not is_number(factor):
        raise json.error("rope_parameters", "numbers under factor and mscale_all_dim", quoted(dict(parameters)))
    return (0.1 * mscale * math.log(factor) + 1.0) ** 2 if factor > 1 else 1.0


def group_numbers(json: ConfigReader, depth: int, *, scale: float, **defaults: int) -> dict[str, Any]:
    """The fields of experts in groups.

    Args:
        json: the config.
        depth: the number of layers.
        scale: transformers' default of `routed_scaling_factor`.
        defaults: its defaults of the other keys.
    """
    keys = ("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "moe_intermediate_size")
    experts, chosen, groups, of_groups, f = (json.positive(key, defaults[key]) for key in keys)
    if experts % groups or experts < 2 * groups:
        raise json.error("n_group", f"a divisor of n_routed_experts ({experts}) with 2 or more in each", str(groups))
    if of_groups > groups:
        raise json.error("topk_group", f"at most n_group ({groups})", str(of_groups))
    if chosen > (available := experts // groups * of_groups):
        raise json.error("num_experts_per_tok", f"at most {available}, the experts of topk_group groups", str(chosen))
    dense = json.take("first_k_dense_replace", int, defaults["first_k_dense_replace"])
    return {
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "n_group": groups,
        "topk_group": of_groups,
        "moe_intermediate_size": f,
        "shared_expert_intermediate_size": json.positive("n_shared_experts", 1) * f,
        "norm_topk_prob": json.take("norm_topk_prob", bool, True),
        "routed_scaling_factor": json.take("routed_scaling_factor", float, scale),
        "layer_kinds": tuple("dense" if i < dense else "experts" for i in range(depth)),
    }


def latent_rows(config: LatentConfig, *, interleaved: bool) -> dict[str, TensorRows]:
    """The rows of a checkpoint's tensors that are the projections of `jaxlin.nn.latent_attention.LatentAttention`.

    There each head of the queries has the rotated features last; one tensor has the latent and the rotated part of
    the keys, and one has the keys and the values of each head.

    Args:
        config: the sizes.
        interleaved: whether the two features that rotate together are neighbours; otherwise they are in two halves.
    """
    h, rotated, rank, v = config.num_attention_heads, config.qk_rope_head_dim, config.kv_lora_rank, config.v_head_dim
    rest = config.head_dim - rotated
    order = halves_of_pairs(rotated) if interleaved else np.arange(rotated)
    head = np.concatenate([rest + order, np.arange(rest)])

    def queries() -> Int[np.ndarray, " n"]:
        return (config.head_dim * np.arange(h)[:, None] + head[None, :]).ravel()

    rows = {f"{name}.weight": TensorRows(f"{name}.weight", queries) for name in ("q_proj", "q_b_proj")}
    for kind in ("weight", "bias"):
        tensor = f"kv_a_proj_with_mqa.{kind}"
        rows[f"kv_a_proj.{kind}"] = TensorRows(tensor, slice(0, rank), rank + rotated)
        rows[f"k_rope_proj.{kind}"] = TensorRows(tensor, rank + order, rank + rotated)
    prefixed = {f"self_attn.{name}": replace(place, tensor=f"self_attn.{place.tensor}") for name, place in rows.items()}
    return {**prefixed, **stacked_rows("self_attn.kv_b_proj.weight", heads=h, k_b_proj=rest, v_b_proj=v)}
