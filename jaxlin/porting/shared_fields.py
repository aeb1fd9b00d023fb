"""Readers of the fields of models whose last layers read the keys and values of earlier ones."""

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.nn.shared_attention import SHARED


def shared_layers(json: ConfigReader, types: tuple[str, ...], default: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The kind of each layer, and the layer whose values it reads; no numbers if each reads its own.

    Args:
        json: the config.
        types: the type of each layer's attention.
        default: how many layers read those of earlier ones, if the key is absent.
    """
    depth, count = len(types), json.at_least_zero("num_kv_shared_layers", default)
    if not count:
        return types, ()
    own = types[: max(depth - count, 0)]
    if set(own) != set(types):
        raise json.error(
            "num_kv_shared_layers",
            f"so few that a layer of each type has values of its own ({', '.join(sorted(set(types)))})",
            str(count),
        )
    last = {kind: max(i for i, each in enumerate(own) if each == kind) for kind in set(types)}
    kinds = (*own, *(SHARED + kind for kind in types[len(own) :]))
    return kinds, (*range(len(own)), *(last[kind] for kind in types[len(own) :]))


def unread_projections(value_layers: tuple[int, ...]) -> dict[str, str]:
    """Patterns of the tensors of keys and values that files have for layers which read those of an earlier one."""
    readers = [layer for layer, own in enumerate(value_layers) if layer != own]
    names = ("k_proj", "v_proj", "k_norm", "v_norm")
    reason = "keys and values of a layer that reads those of an earlier one"
    return {f"*layers.{layer}.self_attn.{name}.*": reason for layer in readers for name in names}
