"""Every key that a config.json may have, and values that differ from its default."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers.modeling_rope_utils import RopeParameters
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HUB_KEYS = Path(__file__).with_name("hub_keys.txt")
"""A file with the keys of real configs and of other tools, one on a line; those of a rope begin with ``rope.``."""

NOT_MEASURED = {"model_type", "quantization_config", "quantization", "compression_config", "transformers_weights"}
"""Keys that name the port or say how weights are stored, which is not measured here."""

ANYTHING: tuple[Any, ...] = (True, False, 3, 0.5, "x", [1, 2], {"a": 1})
"""Values to try for a key without a default in any class."""

VALUES: dict[type, tuple[Any, ...]] = {
    bool: (True, False),
    int: (1, 3, 0),
    float: (0.5, 2.0),
    str: ("x",),
    list: ([1, 2], [0]),
    tuple: ([1, 2], [0]),
    dict: ({"a": 1}, {}),
}
"""Values to try for a key whose default has this type."""

KNOWN: dict[str, tuple[Any, ...]] = {
    # Any other value is an error of the class, whatever the model.
    "problem_type": ("regression", "multi_label_classification"),
    "dtype": ("float16", "bfloat16", "float64"),
    "torch_dtype": ("float16", "bfloat16", "float64"),
    "id2label": ({"0": "a", "1": "b", "2": "c"},),
    "label2id": ({"a": 0, "b": 1, "c": 2},),
    "num_labels": (1, 5),
    "architectures": (["Other"], ["LlamaForSequenceClassification"]),
    "transformers_version": ("4.28.0", "4.45.0.dev0"),
    # Which of transformers' programs runs is asked for by `from_pretrained`, not by the file.
    "_attn_implementation": ("eager", "sdpa"),
    "attn_implementation": ("eager", "sdpa"),
    "_experts_implementation": ("eager",),
    "experts_implementation": ("eager",),
    "_attn_implementation_internal": ("eager", "sdpa"),
    "_experts_implementation_internal": ("eager",),
    "output_attentions": (True, False),
    "_output_attentions": (True, False),
    # Values that a generation config takes: another one is an error, and none changes a forward pass.
    "cache_implementation": ("hybrid", "static", "dynamic"),
    "max_new_tokens": (1, 3),
    "compile_config": ({},),
    "watermarking_config": ({},),
    "assistant_ensemble_weight": (0.5,),
    "vision_feature_select_strategy": ("default", "full"),
    "initializer_range": (0.5, 0.01),
    "mtp_layer_types": (["full_attention"], ["sliding_attention"]),
    # A size that the tiny models can have.
    "per_layer_config": ({"1": {"rms_norm_eps": 0.5}}, {"0": {"sliding_window": 3}}),
    "layer_types": (
        ["full_attention", "sliding_attention"] * 2, ["sliding_attention"] * 4, ["full_attention"] * 4,
        ["sliding_attention"] * 7, ["full_attention"] * 7,
    ),
    "no_rope_layers": ([0, 1, 1, 0], [1, 1, 1, 1]),
    "attention_chunk_size": (3, 5),
    "sliding_window": (3, 5),
    "hidden_act": ("relu", "gelu", "gelu_pytorch_tanh"),
    "hidden_activation": ("relu", "gelu", "silu"),
    "rope_scaling": ({"type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}),
    "rope_parameters": ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},),
    "auto_map": ({"AutoModelForCausalLM": "modeling_other.Other"},),
    "generation_config": ({"temperature": 0.5},),
}  # fmt: skip
"""Values to try for keys where the type alone is not enough."""


def config_classes() -> Iterator[Any]:
    """All config classes of the installed transformers, including those of parts of models."""
    visited: set[Any] = set()
    pending: list[Any] = list(CONFIG_MAPPING.values())
    while pending:
        each = pending.pop()
        if each not in visited:
            visited.add(each)
            yield each
            pending += [part for part in each.sub_configs.values() if dataclasses.is_dataclass(part)]


def known_keys() -> dict[str, list[Any]]:
    """The union of the keys of all config classes, of what generation reads, and of real files, with their defaults."""
    defaults: dict[str, list[Any]] = {}
    for each in config_classes():
        for field in dataclasses.fields(each):
            value = None if field.default is dataclasses.MISSING else field.default
            defaults.setdefault(field.name, []).append(value)
        for name in each.attribute_map:
            defaults.setdefault(name, [])
    for name, value in vars(transformers.GenerationConfig()).items():
        defaults.setdefault(name, []).append(value)
    for name in HUB_KEYS.read_text().split():
        if not name.startswith("rope."):
            defaults.setdefault(name, [])
    return {key: values for key, values in sorted(defaults.items()) if key not in NOT_MEASURED}


def known_rope_keys() -> list[str]:
    """The keys of rope parameters, those of transformers and those of real files."""
    real = [name.removeprefix("rope.") for name in HUB_KEYS.read_text().split() if name.startswith("rope.")]
    return sorted({*typing.get_type_hints(RopeParameters), *real})


def values_of(key: str, defaults: list[Any]) -> list[Any]:
    """The values to try for `key`: those of `KNOWN`, or else by its name and by the types of its `defaults`."""
    if key in KNOWN:
        return list(KNOWN[key])
    if key.endswith(("_token_id", "_token_ids", "_token_index")):
        return [3, 7]
    if key.endswith(("dropout", "pdrop", "drop", "dropout_prob", "dropout_rate")):
        return [0.5]
    types = {type(each) for each in defaults} - {type(None)}
    if not types & VALUES.keys():
        return list(ANYTHING)
    values = []
    for each in VALUES:
        if each in types:
            values += [value for value in VALUES[each] if not any(value is other for other in values)]
    return values
