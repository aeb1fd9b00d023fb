"""The same tiny models in jaxlin. One compiled program serves every config whose layers have the same structure."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import tiny

import jaxlin
from benchmarks.config_keys.reference import PROMPTS, Reference
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.loading.registry import port_for
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.ropes import no_rope
from jaxlin.nn.schedule import Schedule


class Ported:
    """The weights of a `Reference` in jaxlin, under its config and others.

    Positions and windows are arguments of a compiled program, so that only a config with other widths, biases, scales
    or activations compiles another one.

    Args:
        reference: the model whose weights these are.
        folder: the folder that the checkpoint is written to.
    """

    def __init__(self, reference: Reference, folder: Path) -> None:
        self._path = folder
        reference.model.save_pretrained(self._path)
        tiny.write_tokenizer(self._path)
        self._models: dict[Any, Decoder] = {}
        self._logits: dict[Any, list[np.ndarray]] = {}

    def under(self, config: Mapping[str, Any]) -> list[np.ndarray]:
        """The logits of the same weights under `config`, for each of `PROMPTS`.

        Raises:
            JaxlinError: jaxlin refuses the config.
        """
        translated = translate(config)
        if translated not in self._logits:
            model = self._model(translated, config)
            self._logits[translated] = [logits(model, translated, ids) for ids in PROMPTS]
        return self._logits[translated]

    def _model(self, translated: Any, config: Mapping[str, Any]) -> Decoder:
        depth = translated.num_hidden_layers
        bare = dataclasses.replace(
            translated,
            ropes=(no_rope(translated.head_dim),) * depth,
            windows=(None,) * depth,
            max_position_embeddings=None,
        )
        if bare not in self._models:
            (self._path / "config.json").write_text(json.dumps(dict(config)))
            model, _ = jaxlin.load(self._path)
            model.config = bare
            self._models[bare] = model
        return self._models[bare]


def translate(config: Mapping[str, Any]) -> Any:
    """The decoder config that jaxlin translates a config.json to.

    Raises:
        JaxlinError: jaxlin refuses the config.
    """
    reader = ConfigReader(config, "config.json")
    translated = port_for(reader.peek("model_type")).translate(reader)
    reader.leave_out("quantization_config")
    reader.finish()
    return translated


def logits(model: Decoder, config: Any, ids: list[int]) -> np.ndarray:
    """The logits of a prompt with the positions and windows of `config`."""
    schedule = Decoder.schedule(SimpleNamespace(config=config, dtype=model.dtype, layout=model.layout), len(ids))  # type: ignore[arg-type]
    return np.asarray(_forward(model, model.embed(ids), schedule))


@jax.jit
def _forward(model: Decoder, x: jax.Array, schedule: Schedule) -> jax.Array:
    x, _ = model.scan(x, lambda _: Context(), schedule=schedule)
    return model.unembed(model.norm(x, Context()))
