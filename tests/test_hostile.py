"""Small files that once took all memory, never finished, or ended in an error without a message."""

import json
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import jaxlin
from benchmarks.fuzz import folders, ggufs
from benchmarks.fuzz.draws import Draw
from benchmarks.fuzz.samples import CONFIGS
from jaxlin import lens
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.safetensors import SafetensorsFile
from jaxlin.common.errors import CheckpointError, ConfigError, JaxlinError
from jaxlin.common.strict_json import MAX_DEPTH, parse_object
from jaxlin.loading.plan import memory_plan


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    before = time.perf_counter()
    yield
    assert time.perf_counter() - before < 20


def write_file(path: Path, entries: dict[str, Any], data: bytes = b"") -> None:
    """Write a safetensors file with this header, valid or not."""
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("shape", [[2**62, 0], [0, 2**62], [2, 2**62, 0], [2**40, 0, 0], [1] * 33, [10**9] * 50_000])
def test_axes_that_no_file_has(shape: list[int], tmp_path: Path) -> None:
    for name in ("x.safetensors", "lens.safetensors"):
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        field = {"jaxlin_lens": json.dumps({"layers": [0], "prompts": 1})}
        write_file(tmp_path / name, {"J": entry, "__metadata__": field})
    with pytest.raises(CheckpointError, match=r"an axis longer than|axes; 32 are possible"):
        SafetensorsFile(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"an axis longer than|axes; 32 are possible"):
        lens.load(tmp_path / "lens.safetensors")


def test_axes_without_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_file(path, {"a": {"dtype": "F32", "shape": [9, 0, 3], "data_offsets": [0, 0]}})
    assert SafetensorsFile(path).read("a").shape == (9, 0, 3)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_pipes_are_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="expected a file; found another kind of thing"):
        lens.load(tmp_path / name)


@pytest.mark.parametrize("file", ["x" * 300, "\ud800", "x" * 70_000])
def test_shards_of_a_name_that_no_file_has(file: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"\x1b[2J": file}}))
    with pytest.raises(CheckpointError, match="found none") as caught:
        CheckpointFolder(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3000


def test_how_deep_json_may_be() -> None:
    def nested(depth: int) -> str:
        return '{"a":' * depth + "1" + "}" * depth

    assert parse_object(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 900, 200_000):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            parse_object(nested(depth))


@pytest.mark.parametrize("block", [5, [0, 0], [32], [-1, 2], [1.5, 2], [None, 1], {"a": 1, "b": 2}, "32x32", [True, 1]])
@pytest.mark.parametrize("key", ["block_structure", "weight_block_size"])
def test_blocks_that_are_none(block: Any, key: str, tmp_path: Path) -> None:
    config, arrays = folders.quantised("floats" if key == "block_structure" else "fp8")
    settings = config["quantization_config"]
    if key == "block_structure":
        settings["config_groups"]["group_0"]["weights"] |= {"strategy": "block", "block_structure": block}
    else:
        settings = {**settings, key: block}
    write_checkpoint(tmp_path, {**config, "quantization_config": settings}, arrays)
    with pytest.raises(ConfigError, match=r"two integers of at least 1|a value of type list"):
        jaxlin.load(tmp_path)


def test_a_block_larger_than_the_matrix_takes_no_more_memory(tmp_path: Path) -> None:
    config, arrays = folders.quantised("fp8")
    arrays = {name: np.ones((1, 1), np.float32) if name.endswith("_inv") else array for name, array in arrays.items()}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [2**40, 2**40]}
    write_checkpoint(tmp_path, config, arrays)
    model, _ = jaxlin.load(tmp_path)
    assert np.isfinite(model(model.embed([1, 2]))).all()


@pytest.mark.parametrize("method", ["fp8", "floats", "integers", "int8"])
def test_packed_values_in_the_place_of_a_vector(method: str, tmp_path: Path) -> None:
    config, arrays = folders.quantised(method)
    kind = np.int8 if method in ("integers", "int8") else ml_dtypes.float8_e4m3fn
    arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(kind)
    write_checkpoint(tmp_path, config, arrays)
    with pytest.raises(CheckpointError, match="expected values, as of a vector; found codes"):
        jaxlin.load(tmp_path)


def test_layers_of_two_kinds_of_floats(tmp_path: Path) -> None:
    """NumPy has no dtype that holds both float16 and bfloat16."""
    arrays = dict(folders.tensors("qwen3"))
    for layer, kind in ((0, np.float16), (1, ml_dtypes.bfloat16)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        arrays[name] = arrays[name].astype(kind)
    write_checkpoint(tmp_path, CONFIGS["qwen3"], arrays)
    model, _ = jaxlin.load(tmp_path)
    up = model.layers.mlp.up_proj.weight[...]
    for layer in (0, 1):
        expected = arrays[f"model.layers.{layer}.mlp.up_proj.weight"].astype(np.float32)
        np.testing.assert_array_equal(np.asarray(up[layer], np.float32), expected)


def write_checkpoint(folder: Path, config: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write config.json and one file of weights."""
    (folder / "config.json").write_text(json.dumps(config))
    header, data = folders.packed_bytes(folders.with_states(arrays))
    (folder / "model.safetensors").write_bytes(folders.file_bytes(Draw(0), header, data))


@pytest.mark.parametrize("heads", [2**16, 2**29, 2**31 - 1])
def test_heads_that_no_tensor_has(heads: int, tmp_path: Path) -> None:
    pairs, placed = ggufs.sample("llama")
    pairs = [ggufs.Pair(pair.key, "u32", heads) if "head_count" in pair.key else pair for pair in pairs]
    end = placed[-1].offset + -(-len(placed[-1].raw) // 32) * 32
    placed = [each for each in placed if not each.name.startswith("blk.0.attn_")]
    placed.append(ggufs.Tensor("blk.0.attn_qkv.weight", [32, 64], 0, end, bytes(4 * 32 * 64)))
    path = tmp_path / "m.gguf"
    path.write_bytes(ggufs.file_bytes(pairs, placed))
    for use in (jaxlin.load, lambda path: memory_plan(path, tokens=3)):
        with pytest.raises(JaxlinError, match=f"expected {3 * heads * 16} rows; found 64"):
            use(path)


def test_copies_of_one_list(tmp_path: Path) -> None:
    """A pickle of 60 KB would take 4 GB in memory."""
    text = b"\x80\x02](" + b"N" * 50_000 + b"eq\1(" + b"ctorch\nSize\nh\1\x85R" * 10_000 + b"t."
    with zipfile.ZipFile(tmp_path / "lens.pt", "w") as archive:
        archive.writestr("archive/data.pkl", text)
    with pytest.raises(CheckpointError, match=r"a call of torch.Size"):
        lens.load(tmp_path / "lens.pt")


@pytest.mark.parametrize(
    "name", ["a\0b", "a" * 300, "./" + "a" * 300, "a/" * 3000, "\ud800", "~nobody/x", "a\x1b[31m", ""]
)
def test_names_of_checkpoints(name: str) -> None:
    for use in (jaxlin.load, lambda name: memory_plan(name, tokens=3)):
        with pytest.raises(CheckpointError) as caught:
            use(name)
        assert str(caught.value).isprintable()
