"""Checkpoints in, models out; and what is refused, with what it says."""

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import jaxlin
from jaxlin.checkpoint import open_checkpoint
from jaxlin.checkpoint.gguf import unpermute
from jaxlin.common.errors import CheckpointError, ConfigError, JaxlinError, TokenizerError


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a tiny Llama, to be damaged."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "llama"))


def edit(folder: Path, **keys: Any) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(keys)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the tensors."""
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path)


def test_weights_stay_as_stored(checkpoint: Callable[[str], Path]) -> None:
    for name, size in (("llama", 4), ("llama, bfloat16", 2), ("llama, float16", 2)):
        model, _ = jaxlin.load(checkpoint(name))
        assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(model)} == {size}
        assert model.embed([1]).dtype == jnp.float32
    model, _ = jaxlin.load(checkpoint("llama, bfloat16"), dtype="bfloat16")
    assert model(model.embed([1, 2])).dtype == jnp.bfloat16


def test_linearize_and_rule_are_kept(checkpoint: Callable[[str], Path]) -> None:
    model, _ = jaxlin.load(checkpoint("llama"), linearize=True, rule="half")
    assert (model.linearize, model.rule) == (True, "half")


def test_peak_memory(tmp_path: Path) -> None:
    """Reading takes little more than the weights, whatever their layout."""
    import subprocess
    import sys

    options = {**tiny.GQA, "vocab_size": 2000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24}
    tiny.build(tiny.Variant("LlamaConfig", options), tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 300 * 2**20
    program = (
        "import re, sys, jax, jaxlin\n"
        # What getrusage says is inherited from the process that started this one.
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "jaxlin.load()\nbefore = peak()\nmodel, _ = jaxlin.load(sys.argv[1])\n"
        "jax.block_until_ready(jax.tree.leaves(model))\nprint(peak() - before)"
    )
    found = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert 0.9 * size < int(found.stdout) <= 1.3 * size


def test_a_wrapper_says_what_it_leaves_out(checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    jaxlin.load(checkpoint("gemma3"))
    assert re.search(r"left out \d+ tensors .*vision_tower", caplog.text)
    caplog.clear()
    jaxlin.load(checkpoint("llama"))
    assert not caplog.text


def test_layers_of_different_dtypes(folder: Path) -> None:
    """No layer loses bits to another."""
    import ml_dtypes

    name = "model.layers.0.mlp.up_proj.weight"
    expected = load_file(folder / "model.safetensors")
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].astype(ml_dtypes.bfloat16)}))
    model, _ = jaxlin.load(folder)
    found = np.asarray(model.layers.mlp.up_proj.weight[...])
    np.testing.assert_array_equal(found[0], expected[name].astype(ml_dtypes.bfloat16).astype(np.float32))
    for layer in (1, 2, 3):
        np.testing.assert_array_equal(found[layer], expected[f"model.layers.{layer}.mlp.up_proj.weight"])


class TestRefused:
    """Bad input: what was expected, what was found, and nothing half done."""

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"model_type": "mamba"}, "mamba.*no port"),
            ({"model_type": None}, "no port"),
            ({"is_causal": False}, r"is_causal.*changes the logits.*ignore_config_keys=\[\"is_causal\"\]"),
            ({"surprise": 1}, r"surprise.*No config of transformers has it.*ignore_config_keys=\[\"surprise\"\]"),
            ({"quantization_config": {"quant_method": "hqq"}}, "quantization_config"),
            ({"rope_parameters": {"rope_type": "spiral"}}, "spiral"),
            ({"rope_parameters": {"rope_type": "linear"}}, "'factor'"),
            ({"rope_parameters": {"rope_type": "default", "surprise": 1}}, "surprise"),
            (
                {"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
                "partial_rotary_factor",
            ),
            ({"hidden_act": "xielu"}, "xielu"),
            ({"hidden_size": "64"}, "hidden_size"),
            ({"num_hidden_layers": 0}, "num_hidden_layers"),
            ({"num_key_value_heads": 3}, "divisor"),
            ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
            ({"rms_norm_eps": -1.0}, "rms_norm_eps.*above 0"),
            ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
            *(
                ({"rope_parameters": {"rope_type": "default", "rope_theta": theta}}, message)
                for theta, message in ((-1.0, "frequencies"), (0, "frequencies"), ("x", "a number"), (True, "a number"))
            ),
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 10**400}}, "'rope_theta'"),
            ({"rope_parameters": {"rope_type": ["linear"]}}, "Rope type"),
            ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "positive frequencies"),
            ({"rope_parameters": {"rope_type": "linear", "factor": -2.0}}, "positive frequencies"),
            ({"rope_parameters": {"rope_type": "dynamic", "factor": -2.0}}, "numbers that give frequencies"),
            ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}}, "numbers that give"),
            (
                {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 0}},
                "a number of tokens under 'original_max_position_embeddings'; found 0.0",
            ),
            (
                {
                    "rope_parameters": {
                        "rope_type": "longrope",
                        "short_factor": [1.0] * 8,
                        "long_factor": [2.0] * 8,
                        "original_max_position_embeddings": -1,
                    },
                },
                "a number of tokens under 'original_max_position_embeddings'; found -1.0",
            ),
            (
                {"rope_parameters": {"rope_type": "longrope", "short_factor": ["a"] * 8, "long_factor": [1] * 8}},
                "8 numbers under 'short_factor'",
            ),
            ({"partial_rotary_factor": "x"}, "partial_rotary_factor"),
            ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types.*full_attention in every"),
            (
                {"auto_map": {"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"}},
                "auto_map.*a class of Llama.*Other",
            ),
        ],
    )
    def test_config(self, folder: Path, keys: dict[str, Any], message: str) -> None:
        edit(folder, **keys)
        with pytest.raises(ConfigError, match=message):
            jaxlin.load(folder)

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("gemma3", lambda config: config.pop("text_config"), "text_config.*found none"),
            ("gemma3", lambda config: config["text_config"]["layer_types"].pop(), "layer_types.*expected 7.*found 6"),
            ("mistral", lambda config: config.update(sliding_window=0), "sliding_window.*in 1..* found 0"),
            ("mistral", lambda config: config.update(sliding_window=10**10), "sliding_window.*in 1..2147483647"),
            ("mistral", lambda config: config.update(num_hidden_layers=10**8), "num_hidden_layers.*in 1..65536"),
            ("mistral", lambda config: config.update(head_dim=10**8), "head_dim.*in 1..65536"),
            ("gemma", lambda config: config.update(hidden_act="xielu"), "hidden_act.*'xielu'"),
            ("gemma2", lambda config: config.update(final_logit_softcapping=0.0), "final_logit_softcapping.*above 0"),
            ("gemma2", lambda config: config.update(layer_types=[{}] * 4), "layer_types.*expected 4 of full_attention"),
            ("olmo3", lambda config: config.update(rope_parameters={"full_attention": [1]}), "rope_parameters.*object"),
            ("phi", lambda config: config["rope_parameters"].update(partial_rotary_factor=-1), "an even part of"),
            ("phi", lambda config: config["rope_parameters"].update(partial_rotary_factor=0.01), "an even part of"),
        ],
    )
    def test_windows_and_wrappers(
        self, name: str, change: Callable[[Any], Any], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
    ) -> None:
        folder = shutil.copytree(checkpoint(name), tmp_path / "copy")
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match=message):
            jaxlin.load(folder)

    def test_harmless_keys_are_not(self, folder: Path) -> None:
        edit(folder, use_cache=False, pretraining_tp=4, initializer_range=1.0, torch_dtype="float16")
        jaxlin.load(folder)

    def test_ignored_keys(self, folder: Path) -> None:
        """A key that is ignored is as if it were absent, and the model says so, in and out of jit."""
        plain, _ = jaxlin.load(folder)
        edit(folder, surprise=1, rope_scaling={"rope_type": "default", "novelty": 2})
        ignored = ["surprise", "rope_scaling.novelty"]
        model, _ = jaxlin.load(folder, ignore_config_keys=ignored)
        assert model.config == dataclasses.replace(plain.config, ignored_config_keys=tuple(ignored))
        assert "ignored_config_keys=('surprise', 'rope_scaling.novelty')" in repr(model.config)
        logits = jax.jit(lambda model: model.unembed(model(model.embed([1, 2]))))(model)
        np.testing.assert_array_equal(logits, plain.unembed(plain(plain.embed([1, 2]))))
        jaxlin.memory_plan(folder, tokens=2, ignore_config_keys=ignored)
        with pytest.raises(ConfigError, match=r"novelty.*ignore_config_keys=\[\"rope_scaling\.novelty\"\]"):
            jaxlin.load(folder, ignore_config_keys=["surprise"])
        for absent in (["surprize"], ["rope_scaling.novel"], "surprise"):
            with pytest.raises(JaxlinError, match="ignore_config_keys"):
                jaxlin.load(folder, ignore_config_keys=absent)

    @pytest.mark.parametrize(
        "map_",
        [
            {"AutoConfig": "someone/phi--configuration_llama.LlamaConfig", "AutoTokenizer": ["tokenization_x.X", None]},
            {"AutoModel": "modeling_llama.LLaMAModel", "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
        ],
    )
    def test_code_of_the_family(self, folder: Path, map_: dict[str, Any]) -> None:
        edit(folder, auto_map=map_)
        jaxlin.load(folder)

    def test_a_null_is_a_default(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        folder = shutil.copytree(checkpoint("olmo3"), tmp_path / "copy")
        edit(folder, rope_parameters={"full_attention": None, "sliding_attention": {"rope_type": "default"}})
        plain = shutil.copytree(folder, tmp_path / "plain")
        edit(plain, rope_parameters=None)
        assert jaxlin.load(folder)[0].config.ropes == jaxlin.load(plain)[0].config.ropes

    def test_tensors(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
        with pytest.raises(CheckpointError, match=r"model.layers.2.mlp.up_proj.weight of shape \(96, 64\); found none"):
            jaxlin.load(folder)

    def test_an_extra_tensor(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors.update({"model.layers.0.extra.weight": np.ones(3, np.float32)}))
        with pytest.raises(CheckpointError, match=r"model\.layers\.0\.extra"):
            jaxlin.load(folder)

    def test_a_known_buffer_is_left_out(self, folder: Path) -> None:
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        rewrite(folder, lambda tensors: tensors.update({name: np.ones(8, np.float32)}))
        jaxlin.load(folder)

    def test_a_misshapen_tensor(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(63, np.float32)}))
        with pytest.raises(CheckpointError, match=r"model.norm.weight: expected shape \(64,\); found \(63,\)"):
            jaxlin.load(folder)

    def test_nan(self, folder: Path) -> None:
        def damage(tensors: dict[str, np.ndarray]) -> None:
            name = "model.layers.1.self_attn.o_proj.weight"
            tensors[name] = tensors[name].copy()
            tensors[name][3, 4] = np.nan

        rewrite(folder, damage)
        with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.o_proj.*NaN"):
            jaxlin.load(folder)

    def test_integers(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(64, np.int8)}))
        with pytest.raises(CheckpointError, match=r"model.norm.weight.*found int8"):
            jaxlin.load(folder)

    def test_empty_and_truncated(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        for content in (b"", whole[:4], whole[:100], whole[:-1], whole + b"x"):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match="truncated or damaged"):
                jaxlin.load(folder)

    def test_a_missing_shard(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(checkpoint("llama, shards"), tmp_path / "shards"))
        shard = min(folder.glob("model-0*.safetensors"))
        shard.unlink()
        with pytest.raises(CheckpointError, match=shard.name):
            jaxlin.load(folder)

    @pytest.mark.parametrize(
        "outside", ["../llama/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""]
    )
    def test_a_path_out_of_the_folder(self, folder: Path, outside: str) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        index = {"weight_map": {"model.norm.weight": outside}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="same folder"):
            jaxlin.load(folder)

    @pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}', "{", '{"weight_map": {"a": 1}}'])
    def test_a_damaged_index(self, folder: Path, index: str) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(CheckpointError):
            jaxlin.load(folder)

    def test_a_tensor_that_the_index_promises(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        index = {"weight_map": {"model.norm.weight": "shard.safetensors", "nowhere": "shard.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="nowhere"):
            jaxlin.load(folder)

    def test_a_pickle_is_never_opened(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        marker = folder / "opened"

        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return (open, (str(marker), "w"))

        torch.save(Bomb(), folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="pickle"):
            jaxlin.load(folder)
        assert not marker.exists()

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_a_missing_file(self, folder: Path, file: str) -> None:
        (folder / file).unlink()
        with pytest.raises(JaxlinError, match=file):
            jaxlin.load(folder)

    @pytest.mark.parametrize("content", ["", "{", "[]", "\x00", "[" * 100_000])
    def test_a_config_that_is_no_object(self, folder: Path, content: str) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match="JSON"):
            jaxlin.load(folder)

    def test_a_tokenizer_of_more_ids_than_the_model(self, folder: Path) -> None:
        """As Gemma 3's, which has one for images, and a fine-tune's with a token added: only that id is refused."""
        tiny.write_tokenizer(folder, 130)
        model, tokenizer = jaxlin.load(folder)
        assert tokenizer.vocab_size == 130
        last, beyond = chr(29 + 127), chr(29 + 129)
        assert jaxlin.explain(model, tokenizer, last, top=128, spectrum="none").next_tokens
        with pytest.raises(JaxlinError, match=r"token ids in 0..127, those the model has embeddings for; found 129"):
            model.embed(tokenizer.encode(beyond))
        with pytest.raises(JaxlinError, match=r"Target: expected token ids in 0..127; found 129"):
            jaxlin.attribute(model, model.embed([3]), beyond, tokenizer=tokenizer)

    def test_no_tokenizer(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The model loads and takes ids; what needs words says what is missing."""
        (folder / "tokenizer.json").unlink()
        model, tokenizer = jaxlin.load(folder)
        assert tokenizer is None
        assert "without a tokenizer" in caplog.text
        model.embed([3, 4])
        for attempt in (jaxlin.explain, jaxlin.generate):
            with pytest.raises(TokenizerError, match="needs a tokenizer; found None"):
                attempt(model, tokenizer, "ab")

    def test_a_tokenizer_that_is_none(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(TokenizerError, match="expected a tokenizer"):
            jaxlin.load(folder)

    def test_float64_without_x64(self, folder: Path) -> None:
        with pytest.raises(JaxlinError, match="jax_enable_x64"):
            jaxlin.load(folder, dtype="float64")

    @pytest.mark.parametrize("options", [{"dtype": "int8"}, {"dtype": "float33"}, {"rule": "down"}])
    def test_options(self, folder: Path, options: dict[str, Any]) -> None:
        with pytest.raises(JaxlinError, match="expected"):
            jaxlin.load(folder, **options)

    @pytest.mark.parametrize(
        "name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "nowhere.gguf", "a b", "a/b/c/d", ""]
    )
    def test_a_path_that_is_not_there(self, name: str) -> None:
        with pytest.raises(CheckpointError, match="no such"):
            jaxlin.load(name)

    def test_no_network_and_nothing_cached(self) -> None:
        with pytest.raises(CheckpointError, match="cannot be reached"):
            jaxlin.load("someone/some-model")

    def test_another_kind_of_file(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="another kind of file"):
            jaxlin.load(folder / "config.json")


def write_gguf(path: Path, source: Path, arch: str = "llama", **metadata: int) -> None:
    """A GGUF file of a tiny Llama, as llama.cpp's converter would write it."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, arch)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_context_length(config["max_position_embeddings"])
    for key, value in metadata.items():
        writer.add_uint32(key.replace("__", "."), value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = [chr(256 + i) for i in range(config["vocab_size"] - 1)]
    writer.add_token_list([*letters, letters[0] + letters[1]])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    names = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"}
    names |= {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}
    names |= {"post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, values in load_file(source / "model.safetensors").items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config["num_attention_heads" if "q_proj" in part else "num_key_value_heads"]
                values = np.ascontiguousarray(
                    values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
                )
            writer.add_tensor(f"blk.{layer}.{names[part]}.weight", values)
        else:
            writer.add_tensor(f"{top[name.removesuffix('.weight')]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny_gguf(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in GGUF."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, checkpoint("llama"))
    return path


class TestGGUF:
    """GGUF files of the llama architecture."""

    def test_it_is_the_same_model(self, tiny_gguf: Path, checkpoint: Callable[[str], Path]) -> None:
        expected, _ = jaxlin.load(checkpoint("llama"))
        found, _ = jaxlin.load(tiny_gguf)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    def test_unpermute_is_the_inverse(self) -> None:
        rows = np.arange(2 * 8 * 3).reshape(16, 3)
        permuted = rows.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
        np.testing.assert_array_equal(unpermute(permuted, 2), rows)

    def test_rope_freqs(self, tiny_gguf: Path, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        """Llama 3's scaling as a tensor of divisors gives the model that config.json's llama3 gives."""
        source = checkpoint("llama, rope llama3")
        expected, _ = jaxlin.load(source)
        plain = 1 / 1e4 ** (np.arange(0, 16, 2) / 16)
        divisors = (plain / np.array(expected.config.ropes[0].inv_freq)).astype(np.float32)
        assert divisors.max() > 2
        reader_path = tmp_path / "llama3.gguf"
        original = gguf.GGUFWriter.write_header_to_file
        try:

            def with_divisors(writer: gguf.GGUFWriter, *args: Any, **options: Any) -> None:
                writer.add_tensor("rope_freqs.weight", divisors)
                original(writer, *args, **options)

            gguf.GGUFWriter.write_header_to_file = with_divisors
            write_gguf(reader_path, source)
        finally:
            gguf.GGUFWriter.write_header_to_file = original
        found, _ = jaxlin.load(reader_path)
        np.testing.assert_allclose(found.config.ropes[0].inv_freq, expected.config.ropes[0].inv_freq, rtol=1e-6)

    @pytest.mark.parametrize(("arch", "message"), [("mamba", "mamba"), ("gpt2", "gpt2")])
    def test_another_architecture(
        self, arch: str, message: str, checkpoint: Callable[[str], Path], tmp_path: Path
    ) -> None:
        write_gguf(tmp_path / "other.gguf", checkpoint("llama"), arch)
        with pytest.raises(ConfigError, match=message):
            jaxlin.load(tmp_path / "other.gguf")

    def test_metadata_that_is_not_understood(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        write_gguf(tmp_path / "moe.gguf", checkpoint("llama"), llama__expert_group_count=8)
        with pytest.raises(ConfigError, match=r"llama\.expert_group_count = 8"):
            jaxlin.load(tmp_path / "moe.gguf")

    def test_truncated(self, tiny_gguf: Path, tmp_path: Path) -> None:
        whole, path = tiny_gguf.read_bytes(), tmp_path / "cut.gguf"
        for length in (0, 3, 4, 20, 200, len(whole) // 2, len(whole) - 100):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"truncated|magic"):
                open_checkpoint(path)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 1500), st.integers(0, 7))
    def test_a_flipped_bit(self, tiny_gguf: Path, tmp_path: Path, byte: int, bit: int) -> None:
        """Either it is still a GGUF file or the error is ours."""
        content = bytearray(tiny_gguf.read_bytes())
        content[byte] ^= 1 << bit
        path = tmp_path / "flipped.gguf"
        path.write_bytes(content)
        with contextlib.suppress(JaxlinError):
            jaxlin.load(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4000), st.integers(0, 7))
def test_a_flipped_bit_in_safetensors(folder: Path, byte: int, bit: int) -> None:
    """Either it is still a safetensors file of this model or the error is ours."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    content = bytearray(whole)
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    try:
        jaxlin.load(folder)
    except JaxlinError:
        pass
    finally:
        path.write_bytes(whole)
