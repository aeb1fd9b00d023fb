"""Configs as they stand on the hub, and odd ones: transformers' logits, or a refusal that says why."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from benchmarks.config_keys.measure import edited
from benchmarks.config_keys.odd import findings
from benchmarks.config_keys.ported import Ported
from benchmarks.config_keys.reference import Reference
from jaxlin.common.errors import ConfigError

REAL: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("real_configs.json").read_text())
"""The config.json of real checkpoints, key by key, their sizes, windows and trained lengths made tiny."""

SLIDING = ["full_attention", "sliding_attention"] * 2
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 1e4}
NESTED = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}


def assert_agree(reference: Reference, ported: Ported, config: dict[str, Any]) -> None:
    """Both give the same logits, to 2e-5 where they are of order 5."""
    for expected, logits in zip(reference.under(config), ported.under(config), strict=True):
        assert np.abs(logits - expected).max() <= 2e-5 * max(1.0, np.abs(expected).max() / 5)


@pytest.mark.parametrize("name", REAL)
def test_real(name: str, tmp_path: Path) -> None:
    """Past windows and trained lengths too: one of the prompts is longer than either."""
    reference = Reference(REAL[name])
    assert_agree(reference, Ported(reference, tmp_path), REAL[name])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Reference, Ported]]:
    """The model of a variant in both libraries."""

    @functools.cache
    def of(name: str) -> tuple[Reference, Ported]:
        reference = Reference({"model_type": name.split(",")[0], **tiny.VARIANTS[name].options})
        return reference, Ported(reference, tmp_path_factory.mktemp("models"))

    return of


@pytest.mark.parametrize(
    ("name", "path", "edits"),
    [
        ("llama, rope llama3", (), {"original_max_position_embeddings": 40}),
        ("llama, rope yarn", ("rope_parameters",), {"finetuned": True, "attn_factor": 3.0, "truncate": None}),
        ("llama", (), {"layer_types": ["full_attention"] * 4, "sliding_window": 6, "partial_rotary_factor": 0.5}),
        ("llama", (), {"use_sliding_window": True, "gradient_checkpointing": True, "rope_interleaved": True}),
        ("llama", (), {"hidden_act": "relu2"}),
        ("phi", (), {"hidden_act": "quick_gelu"}),
        ("gemma", (), {"hidden_act": "gelu", "hidden_activation": "relu"}),
        ("gemma3", ("text_config",), {"final_logit_softcapping": 1.0}),
        ("gemma3", ("text_config",), {"attn_logit_softcapping": 1.0}),
        ("gemma3_text", (), {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0}),
        ("gemma3_text", (), {"_sliding_window_pattern": 2}),
        ("gemma3_text", (), {"sliding_window_pattern": 2}),
        ("gemma3_text", (), {"rope_parameters": {**NESTED, "full_attention": {**YARN, "truncate": False}}}),
        ("smollm3", (), {"layer_types": SLIDING, "sliding_window": 6, "use_sliding_window": False}),
        ("smollm3", (), {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
        ("qwen2", (), {"use_mrope": True, "sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}),
        ("mistral", (), {"sliding_window": 6, "layer_types": SLIDING}),
        ("muse_glimmer", ("text_config",), {"layer_rope_theta": [5e5, 0, 7, 0], "tie_word_embeddings": True}),
        ("gpt_neox", (), {"rope_theta": 7.0, "num_key_value_heads": 2, "partial_rotary_factor": 1.0}),
        ("gpt_neox", (), {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rotary_emb_base": 500}),
        ("gpt2", (), {"head_dim": 3, "num_key_value_heads": 2, "reorder_and_upcast_attn": True}),
        ("olmo3", (), {"rope_parameters": None, "rope_theta": 1e4}),
        ("olmo3", (), {"rope_parameters": None, "rope_scaling": {**YARN, "rope_theta": 1e6}}),
    ],
)
def test_quirks(
    name: str, path: tuple[str, ...], edits: dict[str, Any], models: Callable[[str], tuple[Reference, Ported]]
) -> None:
    """What transformers makes of keys that contradict each other, or that it does not read."""
    reference, ported = models(name)
    assert_agree(reference, ported, edited(reference.config, path, edits))


@pytest.mark.parametrize(
    ("name", "path", "edits", "message"),
    [
        ("ministral3", (), {"sliding_window": 6, "layer_types": SLIDING}, "sliding_attention in every layer"),
        ("mistral3", ("text_config",), {"sliding_window": 6, "layer_types": SLIDING}, "sliding_attention in every"),
        ("olmo3", (), {"rope_parameters": YARN}, r"transformers ignores silently. Write .\"full_attention\": "),
        ("olmo3", (), {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'type' alone, which transformers ignores"),
        ("gemma2", (), {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("muse_glimmer", ("text_config",), {"layer_rope_theta": [0, 1]}, "layer_rope_theta.*4 numbers"),
        ("muse_glimmer", ("text_config",), {"final_logit_softcapping": 0.0}, "final_logit_softcapping.*above 0"),
        ("gpt_neox", (), {"rotary_pct": 0.01, "rope_parameters": None}, "an even part of"),
        ("qwen2", (), {"layer_types": SLIDING, "sliding_window": 6}, "sliding_window.*some layers slide"),
        ("llama", (), {"rope_scaling": "linear"}, "rope_scaling.*type dict"),
        ("phi3", (), {"rope_scaling": "longrope"}, "rope_scaling.*type dict"),
        ("phi3", (), {"rope_scaling": {"type": "linear", "factor": 2.0}}, "which phi3 supports"),
        ("smollm3", (), {"no_rope_layers": [[1], [0], [1], [1]]}, "no_rope_layers.*4 of 0 or 1"),
        ("ministral3", ("rope_parameters",), {"llama_4_scaling_beta": "x"}, "numbers under llama_4_scaling_beta"),
        ("ministral3", ("rope_parameters",), {"llama_4_scaling_beta": float("nan")}, "numbers under llama_4_scaling"),
        ("llama, rope linear", ("rope_parameters",), {"rope_theta": 1e39}, "positive frequencies of float32"),
        ("llama, rope linear", ("rope_parameters",), {"factor": 1e-39}, "positive frequencies of float32"),
        ("llama, rope linear", ("rope_parameters",), {"rope_theta": 0.5}, "positive frequencies of float32"),
    ],
)  # fmt: skip
def test_refused(
    name: str,
    path: tuple[str, ...],
    edits: dict[str, Any],
    message: str,
    models: Callable[[str], tuple[Reference, Ported]],
) -> None:
    """Where the file contradicts itself, or transformers drops what it says, the message says which."""
    reference, ported = models(name)
    with pytest.raises(ConfigError, match=message):
        ported.under(edited(reference.config, path, edits))


def test_odd() -> None:
    """A short round of ``python -m benchmarks.config_keys --odd``: no difference is silent, no error another's."""
    drawn = list(findings(20, seed=0, types=["smollm3"]))
    assert not [each for each in drawn if each.kind in ("differ", "raw")]
    assert sum(each.kind == "agree" for each in drawn) > 5
