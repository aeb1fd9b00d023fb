"""Readers of the fields of hybrids, in which layers of a gated delta rule alternate with layers of attention."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.printable import quoted
from jaxlin.nn.gated_delta_net import DeltaNetSizes
from jaxlin.porting.fields import MAX_COUNT

LINEAR, FULL = "linear_attention", "full_attention"
"""The kinds of layers, as `layer_types` calls them."""

TILED = "linear_value_heads_tiled"
"""The key, which only configs translated from GGUF have, of `DeltaNetSizes.tiled`."""

DELTA_NET_KEYS = {
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
}
"""The key of config.json for the metadata of GGUF files that have a delta rule."""

DELTA_NET_PARTS = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
"""Hugging Face's names of parts of the names of their tensors."""

DELTA_NET_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "*.A_log": lambda a: np.log(-a),
    "*.linear_attn.norm.weight": lambda w: w,
    "*norm.weight": lambda w: w - 1,
}
"""The inverse of what the converter computes: the rates are stored as $-e^A$, most norms as $1 + w$."""


def hybrid_keys(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a hybrid's config.json that need more than a renaming: see `GGUFPort.derive`.

    Raises:
        ValueError: the sizes contradict each other.
    """
    heads, features = metadata.get("ssm.time_step_rank", 0), metadata.get("ssm.inner_size", 0)
    if not all(type(number) is int and number > 0 for number in (heads, features)) or features % heads:
        raise ValueError(f"ssm.inner_size: expected a multiple of ssm.time_step_rank; found {features} and {heads}")
    share = config.get("partial_rotary_factor", 1.0)
    return {"linear_value_head_dim": features // heads, TILED: True, "partial_rotary_factor": share}


def hybrid_layer_types(json: ConfigReader, layers: int, default: Callable[[int], bool]) -> tuple[str, ...]:
    """The kind of each layer, `LINEAR` or `FULL`.

    Args:
        json: the config, which may list the kinds under `layer_types`.
        layers: the number of layers.
        default: whether the layer of an index has a delta rule, if the key is absent.
    """
    types = json.take("layer_types", list, None)
    if types is None:
        return tuple(LINEAR if default(i) else FULL for i in range(layers))
    if len(types) != layers or any(each not in (LINEAR, FULL) for each in types):
        raise json.error("layer_types", f"{layers} of {FULL} or {LINEAR}", f"{len(types)}: {quoted(types)}")
    return tuple(types)


def delta_net_sizes(
    json: ConfigReader, *, key_heads: int, value_heads: int, key_dim: int | None, value_dim: int | None
) -> DeltaNetSizes:
    """The sizes of the layers with a delta rule.

    Args:
        json: the config.
        key_heads, value_heads, key_dim, value_dim: transformers' defaults; of features, None for one that follows from
            the other sizes.
    """
    n = json.positive("linear_num_key_heads", key_heads, maximum=MAX_COUNT)
    h = json.positive("linear_num_value_heads", value_heads, maximum=MAX_COUNT)
    if h % n:
        raise json.error("linear_num_value_heads", f"a multiple of linear_num_key_heads ({n})", str(h))
    default = key_dim or max(1, int(0.75 * json.positive("hidden_size") / n))
    i = json.positive("linear_key_head_dim", default, maximum=MAX_COUNT)
    v = json.positive("linear_value_head_dim", value_dim or 2 * i, maximum=MAX_COUNT)
    kernel = json.positive("linear_conv_kernel_dim", 4, maximum=MAX_COUNT)
    return DeltaNetSizes(n, h, i, v, kernel, tiled=json.take(TILED, bool, False))
