"""The configs in which keys are tried: a key may matter only if another one is present, or only if it is absent."""

import copy
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import tiny
import transformers

FACTORS = [1 + 0.25 * i for i in range(8)]
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 512},
    "longrope": {"short_factor": FACTORS, "long_factor": FACTORS[::-1], "original_max_position_embeddings": 16},
}
"""One rope of each kind, for heads of 16 features. At a shorter trained length YaRN's `truncate` does nothing."""

SLIDING = ["full_attention", "sliding_attention"] * 2
WINDOW: list[dict[str, Any]] = [{"sliding_window": 6}, {"sliding_window": 6, "layer_types": SLIDING}]
QWEN_WINDOW: list[dict[str, Any]] = [{"use_sliding_window": True, "sliding_window": 6, "layer_types": SLIDING}]
BESIDE: dict[str, list[dict[str, Any]]] = {
    "smollm3": [
        {"use_sliding_window": True, "sliding_window": 6},
        {"use_sliding_window": True, "sliding_window": 6, "layer_types": SLIDING},
        {"layer_types": SLIDING, "sliding_window": 6},
    ],
    "qwen2": QWEN_WINDOW,
    "qwen3": QWEN_WINDOW,
    "mistral": WINDOW,
    "ministral3": WINDOW,
    "llama": [{"sliding_window": 6}, {"sliding_window": 6, "attention_chunk_size": 6, "layer_types": SLIDING}],
    "gemma2": [{"layer_types": SLIDING}],
    "phi3": [{"sliding_window": 6}],
}
"""Keys to put beside the key that is tried, because some keys are read only if another is present."""


class Context(NamedTuple):
    """A config, and where in it keys are tried.

    Attributes:
        name: a name for messages.
        config: the config.json.
        places: a path in it, and the name of the row of the table that this path is measured for.
    """

    name: str
    config: dict[str, Any]
    places: dict[tuple[str, ...], str]


def contexts() -> Iterator[Context]:
    """The variants of the tests, and for each `model_type` a rope of each kind and what `BESIDE` says.

    The first variant of a type is given as transformers 5 writes it, as it and transformers 4 wrote it when they left
    out their defaults, the others in the shortest of the three.
    """
    earlier: list[dict[str, Any]] = []
    for name, variant in tiny.VARIANTS.items():
        parsed = getattr(transformers, variant.config)(**variant.options)
        full = json.loads(parsed.to_json_string(use_diff=False))
        kind = full["model_type"]
        bare = {"model_type": kind, **copy.deepcopy(variant.options)}
        forms = {"bare": bare, "full": full, "old": older(bare)} if name == kind else {"bare": bare}
        for form, config in forms.items():
            if config not in earlier:
                earlier.append(config)
                yield placed(f"{name}, {form}", config)
        if name == kind:
            text = bare.get("text_config", bare)
            for beside in BESIDE.get(text.get("model_type", kind), []):
                yield placed(f"{name}, {beside}", with_text(bare, {**text, **beside}))
            plain = {key: value for key, value in text.items() if key != "rope_parameters"}
            axes = {key: value for key, value in text.get("rope_parameters", {}).items() if key.startswith("mrope")}
            for rope, parameters in ROPES.items():
                flat = {"rope_type": rope, "rope_theta": 1e4, **fit(parameters, parsed), **axes}
                nested = {"full_attention": flat, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
                for parameters in (flat, nested) if "full_attention" in text.get("rope_parameters", {}) else (flat,):
                    yield placed(f"{name}, {rope}", with_text(bare, {**plain, "rope_parameters": parameters}))


def placed(name: str, config: dict[str, Any]) -> Context:
    """The context of `config`, with its places."""
    kind, text = config["model_type"], config.get("text_config")
    places: dict[tuple[str, ...], str] = {(): kind}
    if text is not None:
        places["text_config",] = f"{kind}.text_config"
    before = () if text is None else ("text_config",)
    rope_parameters = (config if text is None else text).get("rope_parameters") or {}
    if "full_attention" in rope_parameters:
        places[*before, "rope_parameters", "full_attention"] = "rope." + rope_parameters["full_attention"]["rope_type"]
    elif rope_parameters and "mrope_section" not in rope_parameters:  # whose axes are the port's to read
        places[*before, "rope_parameters"] = "rope." + rope_parameters.get("rope_type", "default")
    return Context(name, config, places)


def fit(parameters: dict[str, Any], parsed: Any) -> dict[str, Any]:
    """`parameters` with tables of the length that the heads of a config need."""
    text = parsed.get_text_config()
    if getattr(text, "per_layer_config", None):  # of a type whose layers have heads of unlike widths
        text = text.per_layer_config[-1]
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rotated = int(size * (getattr(text, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)) // 2
    tables = {key: (value * rotated)[:rotated] for key, value in parameters.items() if isinstance(value, list)}
    return {**copy.deepcopy(parameters), **tables}


def with_text(config: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """`config` with `text` for its text half, or for itself if it has no halves."""
    return {**config, "text_config": text} if "text_config" in config else text


def older(config: dict[str, Any]) -> dict[str, Any]:
    """The config as transformers 4 would write it, with `rope_theta` and a flat `rope_scaling`."""
    config = copy.deepcopy(config)
    text = config.get("text_config", config)
    parameters, name = text.pop("rope_parameters", {}), "type"
    if "full_attention" in parameters:
        name = "rope_type"  # beside it, transformers overlooks `type` where layers have ropes of two kinds
        text["rope_local_base_freq"] = parameters["sliding_attention"].get("rope_theta", 1e4)
        parameters = parameters["full_attention"]
    text["rope_theta"] = parameters.pop("rope_theta", 1e4)
    kind = parameters.pop("rope_type", "default")
    text["rope_scaling"] = None if kind == "default" else {name: kind, **parameters}
    return config
