"""`GGUFPort`: how to undo llama.cpp's converter, which writes metadata for config.json and reorders rows.

Sources: ``conversion/*.py`` of https://github.com/ggml-org/llama.cpp, which writes the files, and ``src/models/*.cpp``,
which has the constants that the files leave out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlin.checkpoint.gguf import unpermute
from jaxlin.common.printable import quoted

LONGROPE = {"rope_factors_short": "short_factor", "rope_factors_long": "long_factor"}
"""Tensors that divide rotary frequencies, for prompts within the trained length and for longer ones, and their keys."""

EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
}
"""Metadata of experts, and the keys that most families have for it."""

GATINGS = {1: "softmax", 2: "sigmoid", 3: "softmax of the chosen"}
"""The function of the router's logits, by llama.cpp's number of it under ``expert_gating_func``."""

RMS_NORM = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
"""The epsilon of an RMSNorm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GGUFPort:
    """How GGUF files of one architecture become the config.json and the tensors of a Hugging Face checkpoint.

    A family file in ``models/`` lists its own in ``GGUF``, by architecture, and `jaxlin.loading.registry` names the
    file. Nothing here needs the values of a matrix: rows are moved or selected, and only vectors are computed, so that
    packed weights stay packed. A parameter whose tensor has the parameter's own name needs no place in `Port.names`.

    Attributes:
        model_type: the `model_type` that the files are read as.
        keys: the key of config.json for each key of metadata below ``{arch}.`` that not all architectures have.
        read: metadata that `derive` reads, besides that of ropes.
        optional: metadata that other architectures always have, and files of this one may lack.
        per_layer: metadata that may be a list with a number for each layer.
        null: keys of config.json that are null where no metadata gives them: a key that is absent may have a default.
        fixed: metadata that must have this value where it is present.
        parts: Hugging Face's names of parts of the names of tensors, where `hf_name` has another; a part with its kind,
            as in ``ffn_gate_inp.scale``, gives the full name within the layer.
        flags: keys of config.json that are true if a tensor is there.
        sizes: keys of config.json that are the number of rows of a tensor, and its name in Hugging Face's checkpoint.
        stacked: names of modules whose tensors have those of several modules on their first axis, in Hugging Face's
            checkpoint called by their numbers.
        derive: computes the keys that need more than a renaming, from the metadata and the other keys of config.json; a
            value None removes a key. It refuses metadata by a ValueError whose message begins with its key.
        pairs: whether the two features that rotate together are neighbouring rows in queries and keys, as ggml's first
            kind of rotation needs; in Hugging Face's order they are half a head apart.
        values: the inverse of what the converter computes, such as ``w - 1``, for tensors whose names have a pattern;
            the first that fits.
        rows: from the config.json, by the name of a tensor within a layer: a function that takes the number of its
            rows and gives the row of the file that each comes from. It refuses a number by a ValueError.
        by_head: the tensors, by their names within a layer, that have the matrix of each head on a leading axis, where
            Hugging Face's matrix has the rows of all; and whether each is transposed. Those are decoded.
        latent: whether attention is latent: the lengths of keys and values are then those of its latents, and
            `derive` reads them.
        fused: whether Hugging Face, too, stores queries, keys and values in one tensor.
        partial: whether a part of each head may be rotated.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=lambda: RMS_NORM)
    read: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    per_layer: tuple[str, ...] = ()
    null: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)
    stacked: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] = lambda metadata, config: {}
    pairs: bool = False
    values: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    rows: Callable[[Mapping[str, Any]], Mapping[str, Callable[[int], np.ndarray]]] = lambda config: {}
    by_head: Mapping[str, bool] = field(default_factory=dict)
    latent: bool = False
    fused: bool = False
    partial: bool = False


def expert_keys(*missing: str, count: str = "num_experts") -> dict[str, str]:
    """`EXPERTS` of a family that calls the number of experts `count`, without the keys that it lacks."""
    return {metadata: key for metadata, key in {**EXPERTS, "expert_count": count}.items() if key not in missing}


def gating_of(metadata: Mapping[str, Any]) -> str | None:
    """The function of a file's router, softmax if the file does not say; None for a number that is in no `GATINGS`."""
    number = metadata.get("expert_gating_func", 1)
    return GATINGS.get(number) if type(number) is int else None


def check_gating(metadata: Mapping[str, Any], gating: str) -> None:
    """Refuse a file whose router has another function than `gating`, a name in `GATINGS`, if it says which.

    Raises:
        ValueError: it has.
    """
    if metadata.get("expert_gating_func") is not None and gating_of(metadata) != gating:
        name = next(key for key, value in GATINGS.items() if value == gating)
        raise ValueError(
            f"expert_gating_func: expected {name}, {gating}; found {quoted(metadata['expert_gating_func'])}"
        )


def expert_port(
    model_type: str, *lacks: str, normed: bool, keys: Mapping[str, str] | None = None, bias: str
) -> GGUFPort:
    """The port of a family with RMSNorms, and with experts that a softmax over all of them chooses.

    Args:
        model_type: as in `GGUFPort`.
        lacks: the keys of `EXPERTS` that its config.json does not have, beside `routed_scaling_factor`.
        normed: whether weights sum to 1 where a file does not say so: what llama.cpp computes for the architecture.
        keys: further keys, as in `GGUFPort`.
        bias: the key of config.json that says whether queries have biases.
    """

    def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        check_gating(metadata, "softmax")
        return {"norm_topk_prob": config.get("norm_topk_prob", normed), bias: config.get(bias, False)}

    return GGUFPort(
        model_type=model_type,
        keys={**RMS_NORM, **expert_keys("routed_scaling_factor", *lacks), **(keys or {})},
        read=("expert_gating_func",),
        flags={bias: "self_attn.q_proj.bias"},
        derive=derive,
    )


def minus_one(weight: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The weight $w$ of a norm that computes with $1 + w$, which the converter stores."""
    return weight.astype(np.promote_types(weight.dtype, np.float32)) - weight.dtype.type(1)


SHIFTED_NORMS = {"*norm.weight": minus_one}
"""`GGUFPort.values` of a family whose norms compute with $1 + w$."""


def unpermuted_rows(rows: int, heads: int) -> np.ndarray:
    """The row of a file that each row of queries or keys comes from, see `unpermute`."""
    return unpermute(np.arange(rows), heads)


def decimal(value: Any) -> Any:
    """A float as it was written in decimals: GGUF stores 1e-05 as the nearest float32."""
    if isinstance(value, list):
        return [decimal(number) for number in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def sliding_types(metadata: Mapping[str, Any], config: Mapping[str, Any], period: int) -> dict[str, Any]:
    """The keys `sliding_window` and `layer_types`: every `period`-th layer is full; without a window every layer is.

    A file may have a pattern of its own: a period (0: all layers slide), or whether each layer slides.

    Raises:
        ValueError: the pattern is neither.
    """
    depth = config["num_hidden_layers"]
    if not metadata.get("attention.sliding_window"):
        return {"sliding_window": None, "layer_types": ["full_attention"] * depth}
    pattern = metadata.get("attention.sliding_window_pattern", period)
    if len(pattern) != depth if isinstance(pattern, list) else type(pattern) is not int:
        raise ValueError(
            f"attention.sliding_window_pattern: expected a period or {depth} layers; found {quoted(pattern)}"
        )
    slides = pattern if isinstance(pattern, list) else [pattern == 0 or i % pattern < pattern - 1 for i in range(depth)]
    return {"layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides]}


def rope_scaling(metadata: Mapping[str, Any], tensors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The `rope_scaling` of config.json, empty if positions are not scaled.

    Args:
        metadata: the metadata of the file, without the name of the architecture.
        tensors: those of ``rope_freqs``, ``rope_factors_short`` and ``rope_factors_long`` that the file has.

    Raises:
        ValueError: the metadata is not understood; the message begins with its key.
    """
    numbers = {key for key in metadata if key.startswith("rope.scal")} - {"rope.scaling.type", "rope.scaling.finetuned"}
    for key in sorted(numbers):
        if type(metadata[key]) not in (int, float) or not 0 <= metadata[key] < math.inf:
            raise ValueError(f"{key}: expected a number; found {quoted(metadata[key])}")
    kind = metadata.get("rope.scaling.type", "none")
    if kind not in (kinds := ("none", "linear", "yarn", "longrope")):
        raise ValueError(f"rope.scaling.type: expected one of {', '.join(kinds)}; found {quoted(kind)}")
    parameters: dict[str, Any] = {"rope_type": kind}
    factors = {name: decimal(values) for name, values in tensors.items() if name in LONGROPE}
    if factors or kind == "longrope":
        if len(factors) != len(LONGROPE) or kind not in ("none", "longrope"):
            raise ValueError(
                f"rope.scaling.type: expected longrope and tensors {' and '.join(LONGROPE)} together; "
                f"found {quoted(kind)} and {', '.join(factors) or 'none of them'}"
            )
        parameters = {"rope_type": "longrope"} | {LONGROPE[name]: values for name, values in factors.items()}
        factor, computed = metadata.get("rope.scaling.attn_factor"), _longrope_factor(metadata)
        # The factor follows from the two lengths, and the file has it rounded to float32.
        if factor is not None and not math.isclose(factor, computed, rel_tol=1e-6):
            parameters["attention_factor"] = factor
        return parameters
    if "rope_freqs" in tensors and kind == "none":
        return {"rope_type": "divisors", "divisors": tensors["rope_freqs"]}
    if tensors:
        beside = ", ".join(tensors)
        raise ValueError(f"rope.scaling.type: expected none beside tensors of {beside}; found {quoted(kind)}")
    if metadata.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise ValueError(f"rope.scaling.attn_factor: expected 1; found {quoted(metadata['rope.scaling.attn_factor'])}")
    linear = metadata.get("rope.scale_linear", 1.0)  # the key of files of 2023
    if kind == "none":
        return {} if linear == 1.0 else {"rope_type": "linear", "factor": linear}
    parameters["factor"] = metadata.get("rope.scaling.factor")
    if kind == "yarn":
        names = {"original_context_length": "original_max_position_embeddings"}
        names |= {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_log_multiplier": "mscale_all_dim"}
        parameters |= {
            name: metadata[f"rope.scaling.{k}"] for k, name in names.items() if f"rope.scaling.{k}" in metadata
        }
        if "mscale_all_dim" in parameters:
            parameters["mscale"] = 1.0  # that of llama.cpp
        _check_yarn_factor(metadata)
    return parameters


def _longrope_factor(metadata: Mapping[str, Any]) -> float:
    length = metadata.get("context_length") or 1
    original = metadata.get("rope.scaling.original_context_length") or length
    return math.sqrt(1 + math.log(length / original) / math.log(original)) if length > original > 1 else 1.0


def _check_yarn_factor(metadata: Mapping[str, Any]) -> None:
    """Refuse a factor that might change transformers' logits.

    The converter writes `attention_factor`, and the misspelt `attn_factor`, under one key, which llama.cpp ignores. The
    factor that YaRN computes changes nothing. Its inverse is the misspelt value of DeepSeek-R1-0528-Qwen3-8B, which
    transformers ignores too.
    """
    factor, stretch = metadata.get("rope.scaling.yarn_attn_factor"), metadata.get("rope.scaling.factor") or 1.0
    usual = 1 + 0.1 * math.log(max(stretch, 1.0))
    if factor is not None and not any(math.isclose(factor, f, rel_tol=1e-5) for f in (usual, 1 / usual)):
        raise ValueError(
            f"rope.scaling.yarn_attn_factor: expected {usual:.6g}, which YaRN computes for a factor of {stretch:g}; "
            f"found {factor:g}, which llama.cpp does not use and transformers might"
        )
