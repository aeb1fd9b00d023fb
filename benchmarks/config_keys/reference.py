"""Tiny random models in transformers, whose logits under an edited config.json are compared with their own."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import tiny
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

PROMPTS = (tiny.IDS[:5], (tiny.IDS * 4)[:80])
"""One prompt shorter than every window and trained length of `tiny.VARIANTS`, and one longer."""

TOLERANCE = 1e-5
"""The largest difference of equal logits of order 5; transformers repeats its own to about 1e-6."""


class Reference:
    """A model of a config with every parameter drawn, which can be run under other configs.

    Args:
        config: the config.json.

    Attributes:
        config: the config.json.
        model: the model of transformers.
        weights: its tensors by name.
        logits: its logits for `PROMPTS`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        parsed = parse(config)
        model = model_class(parsed)._from_config(parsed, attn_implementation="eager")
        tiny.randomise(model)
        self.model = model
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.logits = self.under(config)

    def under(self, config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> list[np.ndarray]:
        """The logits of the same weights under `config`, for each of `PROMPTS`, computed in `dtype`.

        Raises:
            Exception: whatever transformers raises if it refuses the config.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers warns of keys that it no longer reads
            parsed = parse(config)
            model, info = model_class(parsed).from_pretrained(
                None,
                config=parsed,
                state_dict=dict(self.weights),
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
            )
        if info["missing_keys"] or info["mismatched_keys"] or info["unexpected_keys"]:
            raise ValueError("the weights are not those of the config")
        if isinstance(model, transformers.Llama4ForConditionalGeneration):  # which fails without images
            model = model.language_model
        if dtype == torch.float64 and any(name.endswith("experts") for name, _ in model.named_modules()):
            model.set_experts_implementation("eager")  # the default refuses float64
        with torch.no_grad():
            return [model(torch.tensor([ids]))[0][0].double().numpy() for ids in PROMPTS]

    def outcome(self, config: Mapping[str, Any]) -> Literal["same", "other", "refused"]:
        """Whether `config` gives the same logits as the unchanged one, other logits, or is refused by transformers."""
        try:
            logits = self.under(config)
        except Exception:
            return "refused"
        return "same" if all(map(agree, logits, self.logits)) else "other"


def agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of logits are equal within `TOLERANCE`."""
    return a.shape == b.shape and bool((np.abs(a - b) <= TOLERANCE).all())


def parse(config: Mapping[str, Any]) -> Any:
    """The config object of transformers for a config.json, as `AutoConfig` builds it."""
    kind = config["model_type"]
    if kind == "mistral" and "layer_types" in config:  # the one case in which it takes another class than is named
        kind = "ministral"
    return CONFIG_MAPPING[kind].from_dict(copy.deepcopy({**config, "model_type": kind}))


def model_class(parsed: Any) -> Any:
    """The class that transformers' `Auto` classes choose for a config: that of the wrapper, if it has a vision half."""
    autos = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    for auto in reversed(autos) if hasattr(parsed, "vision_config") else autos:
        if type(parsed) in auto._model_mapping:
            return auto._model_mapping[type(parsed)]
    raise ValueError(f"{type(parsed).__name__}: transformers has no language model for it")
