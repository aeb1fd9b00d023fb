"""The table of measured config keys: a sample of it against transformers, and the reader that refuses by it."""

import contextlib
import json
import random
from typing import Any

import pytest
import tiny
import torch
import transformers

from benchmarks.config_keys.contexts import contexts
from benchmarks.config_keys.keys import known_keys, values_of
from benchmarks.config_keys.measure import edited
from benchmarks.config_keys.odd import difference
from benchmarks.config_keys.reference import Reference
from jaxlin.checkpoint.config import HARMLESS, ConfigReader
from jaxlin.checkpoint.key_table import TABLE, measured_keys
from jaxlin.common.errors import ConfigError
from jaxlin.loading.registry import FAMILIES, port_for

TYPES = [name for types in FAMILIES.values() for name in types]
WRAPPERS = [name for name in TYPES if "text_config" in tiny.VARIANTS[name].options]
ROWS = [*TYPES, *(f"{name}.text_config" for name in WRAPPERS)]
BESIDE = {"max_position_embeddings", "original_max_position_embeddings", "use_sliding_window", "max_window_layers"}
"""Keys that change something only beside another one, which these configs lack."""
SAME_KEYS = 300
CHANGING_KEYS = 2


@pytest.fixture(scope="module")
def configs() -> dict[str, dict[str, Any]]:
    """The config.json of the first variant of each type, as transformers writes it."""
    full = {}
    for name in TYPES:
        variant = tiny.VARIANTS[name]
        parsed = getattr(transformers, variant.config)(**variant.options)
        full[name] = json.loads(parsed.to_json_string(use_diff=False))
    return full


def place_of(row: str) -> tuple[str, ...]:
    return ("text_config",) if row.endswith(".text_config") else ()


def read(config: dict[str, Any]) -> Any:
    reader = ConfigReader(config, "config.json")
    translated = port_for(config["model_type"]).translate(reader)
    reader.finish()
    return translated


@pytest.mark.parametrize("row", ROWS)
def test_harmless_keys(row: str, configs: dict[str, dict[str, Any]]) -> None:
    """All of them are accepted at once, and change nothing; a sample changes nothing in transformers either."""
    config, measured = configs[row.split(".")[0]], measured_keys(row)
    assert measured.changes, f"{row} is in no table: run python -m benchmarks.config_keys {row.split('.')[0]}"
    draw = random.Random(row)
    keys = known_keys()
    own = config["text_config"] if place_of(row) else config
    harmless = sorted(measured.keys - measured.changes - own.keys())
    edits = {key: draw.choice(values_of(key, keys[key])) for key in harmless}
    del edits["auto_map"]
    edits.pop("tie_word_embeddings", None)  # which head is used is said by the tensors
    assert read(edited(config, place_of(row), edits)) == read(config)
    sample = {key: edits[key] for key in draw.sample(sorted(edits), SAME_KEYS)}
    assert Reference(config).outcome(edited(config, place_of(row), sample)) == "same"


@pytest.mark.parametrize("row", ROWS)
def test_keys_that_change(row: str, configs: dict[str, dict[str, Any]]) -> None:
    """Each is taken by the port or refused by name; a sample changes transformers' logits at some value."""
    config, measured, keys = configs[row.split(".")[0]], measured_keys(row), known_keys()
    for key in sorted(measured.changes - HARMLESS.keys()):
        reader = ConfigReader(edited(config, place_of(row), {key: "something"}), "config.json")
        with contextlib.suppress(ConfigError):
            port_for(config["model_type"]).translate(reader)
            if not any(key in each._taken for each in (reader, *reader._parts)):
                with pytest.raises(ConfigError, match=f"'{key}'.*changes the logits.*ignore_config_keys"):
                    reader.finish()
    reference = Reference(config)
    own = config["text_config"] if place_of(row) else config
    numbers = sorted(key for key in measured.changes & own.keys() - BESIDE if type(own[key]) in (int, bool))
    for key in random.Random(row).sample(numbers, min(CHANGING_KEYS, len(numbers))):
        values = [value for value in values_of(key, keys[key]) if value != own[key]]
        assert any(reference.outcome(edited(config, place_of(row), {key: value})) != "same" for value in values), key


@pytest.mark.parametrize("name", TYPES)
def test_attention_both_ways(name: str, configs: dict[str, dict[str, Any]]) -> None:
    """`is_causal` is in no config class, and transformers reads it."""
    row = f"{name}.text_config" if name in WRAPPERS else name
    assert not measured_keys(row).is_harmless("is_causal", False)
    assert measured_keys(row).is_harmless("is_causal", True)
    with pytest.raises(ConfigError, match="is_causal"):
        read(edited(configs[name], place_of(row), {"is_causal": False}))
    assert read(edited(configs[name], place_of(row), {"is_causal": True})) == read(configs[name])


def test_a_table_that_is_stale() -> None:
    """It was measured for every place of every context."""
    table = json.loads(TABLE.read_text())
    rows = {row for context in contexts() for row in context.places.values()}
    assert {row for row in rows if not row.startswith("rope.")} == set(table["models"])
    assert {row.removeprefix("rope.") for row in rows if row.startswith("rope.")} == set(table["ropes"])
    assert table["keys"] == sorted(table["keys"])


def test_a_part_that_is_not_measured() -> None:
    """Of how weights are quantised nothing is known to be harmless."""
    reader = ConfigReader({"model_type": "llama", "quantization_config": {"use_cache": True}}, "config.json")
    reader.part("quantization_config")
    with pytest.raises(ConfigError, match=r"use_cache.*quantization_config\.use_cache"):
        reader.finish()


def test_float64_of_a_mixture() -> None:
    """Which tells a difference of an odd config from rounding; transformers' default way of experts refuses it."""
    reference = Reference({"model_type": "qwen3_moe", **tiny.VARIANTS["qwen3_moe"].options})
    exact = reference.under(reference.config, torch.float64)
    assert difference(reference.logits, exact) <= 2e-5
