"""What llama.cpp's converter makes of a checkpoint: metadata for config.json, ggml's names, rows in another order.

Sources: ``conversion/*.py`` of https://github.com/ggml-org/llama.cpp, which writes the files, and ``src/models/*.cpp``,
which gives what they leave out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlin.checkpoint.gguf import unpermute
from jaxlin.common.printable import quoted

LONGROPE = {"rope_factors_short": "short_factor", "rope_factors_long": "long_factor"}
"""Tensors that divide rotary frequencies, for prompts within the trained length and for longer ones."""

RMS_NORM = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
"""The epsilon of an RMSNorm."""


def _nothing(given: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    del given, config
    return {}


@dataclass(frozen=True, kw_only=True)
class GGUFPort:
    """How GGUF files of one architecture say what config.json and a Hugging Face checkpoint would.

    Nothing here needs the values of a matrix: rows move or are picked, and vectors are shifted, so packed weights can
    stay packed.

    Attributes:
        model_type: the `model_type` that the files are read as.
        keys: metadata below ``{arch}.`` that is a key of config.json, besides what all architectures write.
        read: metadata that `derive` reads, besides that of ropes.
        fixed: metadata that is understood at one value only.
        parts: what Hugging Face calls a part of a tensor's name, where it is not what `hf_name` says.
        flags: keys of config.json that are true where a tensor is there.
        derive: from the metadata and what is known of config.json, the keys that need more than a renaming, None to
            remove one.
        pairs: whether the rows of queries and keys stand in interleaved pairs, for ggml's first kind of rotation.
        norm_offset: what the converter adds to the weights of norms.
        fused: whether Hugging Face, too, keeps queries, keys and values in one tensor.
        partial: whether a part of each head may be rotated.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=lambda: RMS_NORM)
    read: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    derive: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] = _nothing
    pairs: bool = False
    norm_offset: float = 0.0
    fused: bool = False
    partial: bool = False


def halves(rows: int, heads: int) -> np.ndarray:
    """Which row of a file each row of queries or keys is: pairs side by side become halves of each head."""
    return unpermute(np.arange(rows), heads)


def decimal(value: Any) -> Any:
    """A float as it was written: GGUF keeps 1e-05 as the float32 nearest to it."""
    if isinstance(value, list):
        return [decimal(one) for one in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def sliding_types(given: Mapping[str, Any], config: Mapping[str, Any], period: int) -> dict[str, Any]:
    """`sliding_window` and `layer_types`: no layer slides without a window; `period` layers end with a full one.

    A file may say the pattern itself: a period (0: all slide), or whether each layer slides.

    Raises:
        ValueError: a pattern that is neither.
    """
    depth = config["num_hidden_layers"]
    if not given.get("attention.sliding_window"):
        return {"sliding_window": None, "layer_types": ["full_attention"] * depth}
    pattern = given.get("attention.sliding_window_pattern", period)
    if len(pattern) != depth if isinstance(pattern, list) else type(pattern) is not int:
        raise ValueError(
            f"attention.sliding_window_pattern: expected a period or {depth} layers; found {quoted(pattern)}"
        )
    slides = pattern if isinstance(pattern, list) else [pattern == 0 or i % pattern < pattern - 1 for i in range(depth)]
    return {"layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides]}


def rope_scaling(given: Mapping[str, Any], tensors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """`rope_scaling` of config.json; empty where positions are not scaled.

    Args:
        given: the metadata.
        tensors: ``rope_freqs``, ``rope_factors_short`` and ``rope_factors_long``, those there are.

    Raises:
        ValueError: saying which key is not understood.
    """
    numbers = {key for key in given if key.startswith("rope.scal")} - {"rope.scaling.type", "rope.scaling.finetuned"}
    for key in sorted(numbers):
        if type(given[key]) not in (int, float) or not 0 <= given[key] < math.inf:
            raise ValueError(f"{key}: expected a number; found {quoted(given[key])}")
    kind = given.get("rope.scaling.type", "none")
    if kind not in (known := ("none", "linear", "yarn", "longrope")):
        raise ValueError(f"rope.scaling.type: expected one of {', '.join(known)}; found {quoted(kind)}")
    parameters: dict[str, Any] = {"rope_type": kind}
    factors = {name: decimal(values) for name, values in tensors.items() if name in LONGROPE}
    if factors or kind == "longrope":
        if len(factors) != len(LONGROPE) or kind not in ("none", "longrope"):
            raise ValueError(
                f"rope.scaling.type: expected longrope and tensors {' and '.join(LONGROPE)} together; "
                f"found {quoted(kind)} and {', '.join(factors) or 'none of them'}"
            )
        parameters = {"rope_type": "longrope"} | {LONGROPE[name]: values for name, values in factors.items()}
        factor, computed = given.get("rope.scaling.attn_factor"), _longrope_factor(given)
        # The file rounds to float32 what is computed from the two lengths.
        if factor is not None and not math.isclose(factor, computed, rel_tol=1e-6):
            parameters["attention_factor"] = factor
        return parameters
    if "rope_freqs" in tensors and kind == "none":
        return {"rope_type": "divisors", "divisors": tensors["rope_freqs"]}
    if tensors:
        beside = ", ".join(tensors)
        raise ValueError(f"rope.scaling.type: expected none beside tensors of {beside}; found {quoted(kind)}")
    if given.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise ValueError(f"rope.scaling.attn_factor: expected 1; found {quoted(given['rope.scaling.attn_factor'])}")
    linear = given.get("rope.scale_linear", 1.0)  # how files of 2023 say it
    if kind == "none":
        return {} if linear == 1.0 else {"rope_type": "linear", "factor": linear}
    parameters["factor"] = given.get("rope.scaling.factor")
    if kind == "yarn":
        names = {"original_context_length": "original_max_position_embeddings"}
        names |= {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_log_multiplier": "mscale_all_dim"}
        found = {name: given[f"rope.scaling.{key}"] for key, name in names.items() if f"rope.scaling.{key}" in given}
        parameters |= found
        if "mscale_all_dim" in found:
            parameters["mscale"] = 1.0  # the runtime's
        _check_yarn_factor(given)
    return parameters


def _longrope_factor(given: Mapping[str, Any]) -> float:
    length = given.get("context_length") or 1
    original = given.get("rope.scaling.original_context_length") or length
    return math.sqrt(1 + math.log(length / original) / math.log(original)) if length > original > 1 else 1.0


def _check_yarn_factor(given: Mapping[str, Any]) -> None:
    """The converter writes `attention_factor` and the misspelt `attn_factor` under one key, which the runtime ignores.

    What YaRN gives by itself says nothing new; its inverse is what DeepSeek-R1-0528-Qwen3-8B misspells, and what
    transformers ignores too.
    """
    factor, stretch = given.get("rope.scaling.yarn_attn_factor"), given.get("rope.scaling.factor") or 1.0
    usual = 1 + 0.1 * math.log(max(stretch, 1.0))
    if factor is not None and not any(math.isclose(factor, known, rel_tol=1e-5) for known in (usual, 1 / usual)):
        raise ValueError(
            f"rope.scaling.yarn_attn_factor: expected {usual:.6g}, what YaRN gives for a factor of {stretch:g}; "
            f"found {factor:g}, which llama.cpp does not use and transformers might"
        )
