"""Readers of the fields that most families have in config.json; each is checked, and has transformers' default."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxlin.checkpoint.config import ConfigReader, is_number
from jaxlin.common.printable import quoted
from jaxlin.nn.ropes import Rope
from jaxlin.porting.rope_parameters import rope_from_parameters

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    **{name: name for name in ("quick_gelu", "relu", "relu2", "leaky_relu", "hardswish", "mish", "tanh")},
}
"""The name in `jaxlin.nn.layers` of each activation, by its name in transformers."""

MAX_COUNT = 2**16
"""The largest number of layers, and of features of a head, that is accepted. Lists of that length are built before any
tensor is read: without a bound, one number in a config could take all memory."""


def decoder_numbers(
    json: ConfigReader,
    *,
    max_position_embeddings: int,
    hidden_act: str = "silu",
    act_key: str = "hidden_act",
    norm_eps: float = 1e-6,
    eps_key: str | None = "rms_norm_eps",
    head_dim: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    vocab_size: int | None = None,
    intermediate_size: int | None = None,
    width_key: str = "intermediate_size",
    tied: bool = False,
) -> dict[str, Any]:
    """The fields of `jaxlin.nn.config.Config` that most families share.

    Args:
        json: the config.
        act_key: the key of the activation.
        eps_key: the key of the norms' epsilon; None if the family has no such key, and the default always applies.
        width_key: the key of the hidden features of an MLP.
        tied: the default of `tie_word_embeddings`.
        max_position_embeddings, hidden_act, norm_eps, head_dim, num_attention_heads, num_key_value_heads, vocab_size,
            intermediate_size: transformers' defaults for the family; None for a key that it requires.
    """

    def number(key: str, default: int | None) -> int:
        return json.positive(key, default) if default is not None else json.positive(key)

    d = json.positive("hidden_size")
    heads = number("num_attention_heads", num_attention_heads)
    kv_heads = json.positive_or_none("num_key_value_heads", num_key_value_heads) or heads
    if heads % kv_heads:
        raise json.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", str(kv_heads))
    k = json.positive("head_dim", head_dim or d // heads, maximum=MAX_COUNT)
    if k % 2:
        raise json.error("head_dim", "an even number, as rotary positions pair features", str(k))
    return {
        "vocab_size": number("vocab_size", vocab_size),
        "hidden_size": d,
        "intermediate_size": number(width_key, intermediate_size),
        "num_hidden_layers": json.positive("num_hidden_layers", maximum=MAX_COUNT),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": k,
        "norm_eps": norm_eps if eps_key is None else json.above_zero(eps_key, json.take(eps_key, float, norm_eps)),
        "hidden_act": activation(json, hidden_act, act_key),
        "max_position_embeddings": json.positive("max_position_embeddings", max_position_embeddings),
        "tie_word_embeddings": json.take("tie_word_embeddings", bool, tied),
    }


def expert_numbers(
    json: ConfigReader,
    *,
    num_experts: int,
    num_experts_per_tok: int,
    width: int | None = None,
    count_keys: Sequence[str] = ("num_experts", "num_local_experts"),
    width_key: str = "moe_intermediate_size",
) -> dict[str, Any]:
    """The fields of `jaxlin.nn.experts.ExpertConfig` that every mixture of experts has.

    Args:
        json: the config.
        num_experts, num_experts_per_tok, width: transformers' defaults for the family; None for a key that it requires.
        count_keys: the keys that the number of experts may have.
        width_key: the key of the hidden features of an expert.
    """
    json.leave_out("output_router_logits")  # transformers returns them beside the logits, which stay the same
    counts = {key: json.positive(key, None, maximum=MAX_COUNT) for key in count_keys}
    different = {count for count in counts.values() if count is not None} or {num_experts}
    if len(different) > 1:
        raise json.error(count_keys[0], f"one number of experts, as under {count_keys[1]}", quoted(counts))
    (count,) = different
    per_token = json.positive("num_experts_per_tok", num_experts_per_tok)
    if per_token > count:
        raise json.error("num_experts_per_tok", f"at most {count}, the number of experts", str(per_token))
    features = json.positive(width_key) if width is None else json.positive(width_key, width)
    return {"num_experts": count, "num_experts_per_tok": per_token, "moe_intermediate_size": features}


def activation(json: ConfigReader, default: str, key: str = "hidden_act") -> str:
    """The activation under `key`, as a name of `jaxlin.nn.layers.SLOPES`."""
    name = json.take(key, str, default)
    if name not in ACTIVATIONS:
        raise json.error(key, f"one of {', '.join(ACTIVATIONS)}", repr(name))
    return ACTIVATIONS[name]


def rope_of(
    json: ConfigReader,
    head_dim: int,
    max_position_embeddings: int,
    *,
    theta: float = 1e4,
    partial: float | None = None,
    default: Mapping[str, Any] | None = None,
    replace: Mapping[str, Any] | None = None,
    extra: Sequence[str] = (),
) -> Rope:
    """The rotary positions of a config, which has either ``rope_parameters`` or ``rope_theta`` and ``rope_scaling``.

    As in transformers, an `original_max_position_embeddings` beside the parameters overrides the one among them.

    Args:
        json: the config.
        head_dim: the features of a head.
        max_position_embeddings: the longest prompt that the config allows.
        theta: the family's default base.
        partial: the share of each head's features that the family rotates by default; None if it always rotates all.
        default: the family's default parameters.
        replace: parameters that replace those of the config.
        extra: parameters that do not affect the frequencies; the family reads them itself.
    """
    theta = json.take("rope_theta", float, theta)
    share = json.optional("partial_rotary_factor", float, partial)
    original = json.positive("original_max_position_embeddings", None)
    parameters = {**(rope_parameters(json) or default or {}), **(replace or {})}
    if original is not None:
        parameters["original_max_position_embeddings"] = original
    share = parameters.pop("partial_rotary_factor", 1.0 if share is None else share)
    parameters = {key: value for key, value in parameters.items() if key not in extra}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if partial is None and kind == "default":
        share = 1.0  # without scaling, transformers rotates whole heads in such a family
    if partial is None and share != 1:
        raise json.error("partial_rotary_factor", "1, as this family rotates whole heads", repr(share))
    if not is_number(share) or not 0 < share <= 1 or int(head_dim * share) < 2 or int(head_dim * share) % 2:
        raise json.error("partial_rotary_factor", f"the share of an even part of {head_dim} features", repr(share))
    return rope_from_parameters(
        parameters,
        dim=int(head_dim * share),
        theta=theta,
        max_position_embeddings=max_position_embeddings,
        path=json.path_of("rope_scaling" if json.peek("rope_scaling") else "rope_parameters"),
    )


def rope_parameters(json: ConfigReader) -> dict[str, Any]:
    """The rope parameters of a config, from ``rope_scaling`` if it has any, otherwise from ``rope_parameters``."""
    parameters = json.take("rope_parameters", dict, None)
    return dict(json.take("rope_scaling", dict, None) or parameters or {})


def ropes_by_type(
    json: ConfigReader, head_dim: int, max_position_embeddings: int, theta: Mapping[str, float]
) -> dict[str, Rope]:
    """One rope for each layer type, from nested ``rope_parameters`` or a flat ``rope_scaling``.

    As in transformers, a flat ``rope_scaling`` applies to the full-attention layers only.
    """
    nested = json.take("rope_parameters", dict, None) or {}
    scaling = json.take("rope_scaling", dict, None)
    if unknown := sorted(set(nested) - theta.keys()):
        raise json.error(
            "rope_parameters",
            f"one object for each of {', '.join(theta)}",
            quoted(", ".join(unknown)) + ", which transformers ignores silently. Write "
            '{"full_attention": {these}, "sliding_attention": {"rope_type": "default", "rope_theta": ...}} instead',
        )
    for kind, parameters in nested.items():
        if parameters is not None and not isinstance(parameters, dict):
            raise json.error("rope_parameters", f"an object for {kind}", quoted(parameters))
    if scaling and scaling.get("type") not in (None, "default") and not scaling.get("rope_type"):
        raise json.error(
            "rope_scaling",
            "its kind under 'rope_type'",
            quoted(scaling["type"]) + " under 'type' alone, which transformers ignores in this family",
        )
    full = {**(nested.get("full_attention") or {}), **(scaling or {})}
    return {
        kind: rope_from_parameters(
            full if kind == "full_attention" else nested.get(kind) or {},
            dim=head_dim,
            theta=base,
            max_position_embeddings=max_position_embeddings,
            path=json.path_of("rope_scaling" if kind == "full_attention" and scaling else f"rope_parameters.{kind}"),
            truncate=True,  # transformers reads `truncate` beside these objects, where no file has it
        )
        for kind, base in theta.items()
    }


def layer_types(
    json: ConfigReader, layers: int, default: Callable[[int], bool], local: str = "sliding_attention"
) -> tuple[str, ...]:
    """The kind of attention of each layer, ``"full_attention"`` or `local`.

    Args:
        json: the config, which may list the kinds under `layer_types`.
        layers: the number of layers.
        default: whether the layer of an index has local attention, if the key is absent.
        local: the name of local attention.
    """
    types = json.take("layer_types", list, None)
    if types is None:
        return tuple(local if default(i) else "full_attention" for i in range(layers))
    if len(types) != layers or any(each not in ("full_attention", local) for each in types):
        raise json.error("layer_types", f"{layers} of full_attention or {local}", f"{len(types)}: {quoted(types)}")
    return tuple(types)


def one_layer_type(json: ConfigReader, layers: int) -> None:
    """Refuse sliding layers, for a family in which transformers gives every layer the same mask."""
    types = set(layer_types(json, layers, lambda i: False))
    if types != {"full_attention"}:
        raise json.error("layer_types", "full_attention in every layer, as this family has one kind", "sliding layers")


def rotating_layers(json: ConfigReader, layers: int) -> list[bool]:
    """Whether each layer rotates, by `no_rope_layers`, or by the interval of those that do not."""
    interval = json.positive("no_rope_layer_interval", 4)
    rotates = json.take("no_rope_layers", list, [int((i + 1) % interval != 0) for i in range(layers)])
    if len(rotates) < layers or any(each not in (0, 1) for each in rotates):
        raise json.error("no_rope_layers", f"{layers} of 0 or 1, 1 for a layer that rotates", quoted(rotates))
    return [each == 1 for each in rotates[:layers]]


def windows(json: ConfigReader, types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """The window of each layer: `window` if it has sliding attention, None if it has full attention."""
    if window is None and "sliding_attention" in types:
        raise json.error("sliding_window", "a number of tokens, as some layers slide", "none")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def check_uniform(json: ConfigReader, types: Sequence[str], window: int | None) -> None:
    """Refuse `layer_types` that contradict `window`: transformers applies it to every layer or to none."""
    kind = "full_attention" if window is None else "sliding_attention"
    if set(types) != {kind}:
        raise json.error(
            "layer_types", f"{kind} in every layer, which is what transformers computes for this sliding_window",
            quoted(list(types)),
        )  # fmt: skip
