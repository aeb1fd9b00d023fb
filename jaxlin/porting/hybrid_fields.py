"""Readers of the fields of hybrids, in which layers of a gated delta rule alternate with layers of attention."""

from collections.abc import Callable

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.printable import quoted
from jaxlin.nn.gated_delta_net import DeltaNetSizes
from jaxlin.porting.fields import MAX_COUNT

LINEAR, FULL = "linear_attention", "full_attention"
"""The kinds of layers, as `layer_types` calls them."""


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
    return DeltaNetSizes(n, h, i, v, kernel)
