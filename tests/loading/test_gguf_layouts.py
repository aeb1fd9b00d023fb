"""GGUF files in the layouts that only some architectures have: latents, blocks that draft tokens, MXFP4."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import jax
import numpy as np
import pytest
from gguf_variants import VARIANTS
from mxfp4_files import pack_experts
from safetensors.numpy import load_file

import jaxlin
from jaxlin.common.errors import ConfigError
from jaxlin.porting.latent_gguf import deepseek_keys, mistral_keys

Checkpoint = Callable[[str], Path]


def same(found: Any, expected: Any) -> None:
    """Every array of two models is the same, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), jax.tree.leaves(expected))


@pytest.mark.parametrize("name", ["deepseek_v3", "mistral4"])
def test_keys_and_values_in_one_tensor(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As files before 2025 have them; in those of today each head has its own matrices, and keys are transposed."""
    arch = VARIANTS[name][0]
    for joint in (False, True):
        gguf_files.write(tmp_path / f"{joint}.gguf", checkpoint(name), arch, joint=joint)
    expected, _ = jaxlin.load(checkpoint(name))
    for joint in (False, True):
        found, _ = jaxlin.load(tmp_path / f"{joint}.gguf")
        same(found, expected)


def test_mistral4_in_the_architecture_of_deepseek() -> None:
    """A checkpoint in Mistral's own format is converted to deepseek2, and says how queries grow."""
    metadata = {
        **{"rope.dimension_count": 8, "attention.key_length_mla": 16, "attention.value_length_mla": 12},
        **{"expert_gating_func": 1, "attention.temperature_scale": 0.1, "attention.temperature_length": 4},
    }
    config = {
        **{"num_attention_heads": 4, "num_key_value_heads": 1, "n_group": 2, "topk_group": 1},
        "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 4, "mscale_all_dim": 0.1},
    }
    keys = deepseek_keys(metadata, config)
    assert keys["model_type"] == "mistral4"
    assert keys == mistral_keys({k: v for k, v in metadata.items() if "temperature" not in k}, config)
    assert keys["rope_parameters"]["mscale_all_dim"] == 1.0
    assert keys["rope_parameters"]["llama_4_scaling_beta"] == 0.1
    assert (keys["qk_nope_head_dim"], keys["v_head_dim"], keys["num_key_value_heads"]) == (8, 12, 4)
    with pytest.raises(ValueError, match="temperature_length: expected the trained length, 4; found 8"):
        deepseek_keys({**metadata, "attention.temperature_length": 8}, config)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expert_gating_func: expected 2, sigmoid.*'none', as in DeepSeek V2"),
        ({"expert_gating_func": 1}, "expert_gating_func: expected 2, sigmoid"),
        ({"expert_gating_func": 2}, "expert_group_count: .*older converters"),
        ({"expert_gating_func": 2, "attention.key_length_mla": 8}, "attention.key_length_mla: .*above rope"),
        ({"expert_gating_func": 2, "attention.value_length_mla": None}, "attention.key_length_mla: expected lengths"),
    ],
)
def test_latent_metadata_that_is_refused(metadata: dict[str, Any], message: str) -> None:
    usual = {"rope.dimension_count": 8, "attention.key_length_mla": 16, "attention.value_length_mla": 12}
    groups = {} if "group_count" in message else {"expert_group_count": 1, "expert_group_used_count": 1}
    with pytest.raises(ValueError, match=message):
        deepseek_keys({**usual, **groups, **metadata}, {"num_attention_heads": 4, "num_key_value_heads": 1})
    with pytest.raises(ValueError, match=r"attention.head_count_kv: expected 1; found 4"):
        mistral_keys(usual, {"num_attention_heads": 4, "num_key_value_heads": 4})


def drafting(path: Path, source: Path, block_count: int, drafts: int, extra: dict[str, Any]) -> Path:
    """A file of Qwen 3.5 that says that so many of its blocks draft tokens."""

    def change(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0]["qwen35.block_count"]
        writer.add_block_count(block_count)
        writer.add_nextn_predict_layers(drafts)

    gguf_files.write(path, source, "qwen35", change=change, extra=extra)
    return path


@pytest.mark.usefixtures("uncompiled_plans")
def test_blocks_that_draft_tokens(checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are the last ones, they have tensors of their own, and no other block reads what they compute."""
    source = checkpoint("qwen3_5_text, interval")
    depth = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    expected, _ = jaxlin.load(gguf_files.write(tmp_path / "none.gguf", source, "qwen35").with_suffix(".gguf"))
    block = {f"blk.{depth}.{part}.weight": np.ones((64, 128), np.float32) for part in ("nextn.eh_proj", "attn_q")}
    for name, extra in (("with", block), ("without", {})):
        path = drafting(tmp_path / f"{name}.gguf", source, depth + 1, 1, extra)
        with caplog.at_level(logging.WARNING):
            found, _ = jaxlin.load(path)
        same(found, expected)
        assert ("of blocks that draft further tokens" in caplog.text) == (name == "with")
        caplog.clear()
        assert jaxlin.memory_plan(path, tokens=2).weights == sum(leaf.nbytes for leaf in jax.tree.leaves(found))
    for i, (count, drafts, extra, message) in enumerate(
        [
            (depth, 1, {}, "nextn_predict_layers: expected 1 blocks with tensors nextn"),
            (depth + 1, 0, block, "nextn_predict_layers: expected 0 blocks with tensors nextn"),
            (depth, depth, {}, "nextn_predict_layers: expected a number of blocks below block_count, 5; found 5"),
            (depth + 3, 1, block, "block_count: expected 8 blocks"),
        ]
    ):
        with pytest.raises(ConfigError, match=message):
            jaxlin.load(drafting(tmp_path / f"{i}.gguf", source, count, drafts, extra))


def test_mxfp4_in_the_order_of_either_format(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Bytes of a folder have neighbouring values, those of a GGUF file values half a block apart."""
    folder = pack_experts(checkpoint("gpt_oss, wide"), tmp_path / "folder")
    packed = load_file(folder / "model.safetensors")

    def with_blocks(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for layer in range(2):
            for part, rows in (("gate", slice(0, None, 2)), ("up", slice(1, None, 2)), ("down", slice(None))):
                name = f"model.layers.{layer}.mlp.experts.{'down' if part == 'down' else 'gate_up'}_proj"
                blocks, scales = (packed[f"{name}_{end}"][:, rows] for end in ("blocks", "scales"))
                codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
                halves = codes[..., :16] | codes[..., 16:] << 4
                raw = np.concatenate([scales[..., None], halves], axis=-1)
                tensors[f"blk.{layer}.ffn_{part}_exps.weight"] = raw.reshape(*raw.shape[:2], -1)
        return tensors

    kinds = {True: "MXFP4", False: "F32"}
    gguf_files.write(
        tmp_path / "any.gguf",
        folder / "values",
        "gpt-oss",
        lambda name: kinds[".experts." in name and name.endswith("weight")],
        rename=with_blocks,
    )
    found, expected = (jaxlin.load(path)[0] for path in (tmp_path / "any.gguf", folder))
    same(found, expected)


def test_gpt_oss_of_two_widths(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0]["gpt-oss.feed_forward_length"]
        writer.add_feed_forward_length(7)

    gguf_files.write(tmp_path / "any.gguf", checkpoint("gpt_oss"), "gpt-oss", change=change)
    with pytest.raises(ConfigError, match=r"feed_forward_length: expected one width, that of the experts; found .*7"):
        jaxlin.load(tmp_path / "any.gguf")


def test_a_matrix_of_each_head_has_three_axes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def flat(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: a.reshape(-1, a.shape[-1]) if "attn_v_b" in name else a for name, a in tensors.items()}

    gguf_files.write(tmp_path / "any.gguf", checkpoint("mistral4"), "mistral4", rename=flat)
    with pytest.raises(ConfigError, match=r"attn_v_b.weight: expected three axes, that of the heads first"):
        jaxlin.load(tmp_path / "any.gguf")


def test_phimoe(tmp_path: Path) -> None:
    """Its files lack a factor that its logits depend on."""
    writer = gguf.GGUFWriter(tmp_path / "any.gguf", "phimoe")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="'phimoe', whose files lack short_mscale"):
        jaxlin.load(tmp_path / "any.gguf")
