"""GGUF checkpoints in several files, as the gguf library writes them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import huggingface_hub
import jax
import numpy as np
import pytest
import tiny

import jaxlin
from jaxlin.checkpoint import open_checkpoint
from jaxlin.common.errors import CheckpointError

NAMES = [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model in three files; ``one.gguf`` is the same in one."""
    folder = tmp_path_factory.mktemp("shards")
    source = tiny.build(tiny.VARIANTS["qwen3"], folder / "checkpoint")
    gguf_files.write(folder / "one.gguf", source, "qwen3", lambda name: "Q8_0")
    gguf_files.write(folder / "tiny.gguf", source, "qwen3", lambda name: "Q8_0", split=20)
    assert sorted(path.name for path in folder.glob("tiny-*.gguf")) == NAMES
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_any_file_opens_all(name: str, shards: Path) -> None:
    whole, found = open_checkpoint(shards / "one.gguf"), open_checkpoint(shards / name)
    assert found.config == whole.config
    assert found.names() == whole.names()
    files = set()
    for tensor in whole.names():
        np.testing.assert_array_equal(found.read(tensor), whole.read(tensor))
        files.add(found.file_of(tensor).name)
    assert files == set(NAMES)


@pytest.mark.usefixtures("uncompiled_plans")
def test_a_model_and_its_plan(shards: Path) -> None:
    expected, _ = jaxlin.load(shards / "one.gguf")
    model, tokenizer = jaxlin.load(shards / NAMES[1])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(model), jax.tree.leaves(expected))
    assert tokenizer.vocab_size == model.config.vocab_size
    plan = jaxlin.memory_plan(shards / NAMES[2], tokens=2)
    assert plan.weights == sum(leaf.nbytes for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("name", [f"org/name/{NAMES[1]}", f"org/name:{NAMES[0]}"])
def test_all_files_are_downloaded(name: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        return str(shards / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert open_checkpoint(name, "v1").file_of("token_embd.weight").parent == shards
    assert asked == [("org/name", file, "v1") for file in NAMES]


def edited(path: Path, changes: dict[str, Any], tensor: str | None = None) -> None:
    """The file anew, with other metadata of its place and perhaps one more tensor."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "qwen3")
    for key, value in changes.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for each in reader.tensors:
        writer.add_tensor(each.name, each.data, raw_dtype=each.tensor_type)
    if tensor:
        writer.add_tensor(tensor, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").rename(path)


TENSORS = 47
PLACE = {"split.no": 1, "split.count": 3, "split.tensors.count": TENSORS}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / NAMES[2]).unlink(), rf"expected {NAMES[2]} beside it, one of 3 files.*found none"),
        (lambda folder: (folder / NAMES[1]).rename(folder / "b.gguf"), r"a name that ends in -0000N-of-00003"),
        (lambda folder: shutil.copy(folder / NAMES[0], folder / NAMES[1]), r"split.no: expected 1, .*found 0"),
        (lambda folder: edited(folder / NAMES[1], {**PLACE, "split.count": 2}), r"split.count: expected a name"),
        (
            lambda folder: edited(folder / NAMES[1], {**PLACE, "split.count": "a" * 999}),
            r"split.count: .*found 'a{100,199}'\.\.\.",
        ),
        (lambda folder: edited(folder / NAMES[2], {**PLACE, "split.no": None}), r"split.no: expected 2.*found none"),
        (
            lambda folder: edited(folder / NAMES[1], {**PLACE, "split.tensors.count": 45}),
            rf"tensors.count: expected {TENSORS}.*found 45",
        ),
        (
            lambda folder: edited(folder / NAMES[1], PLACE, "token_embd.weight"),
            rf"tensors.count: expected {TENSORS + 1}",
        ),
        (lambda folder: (folder / NAMES[2]).write_bytes(b"GGUF"), rf"{NAMES[2]}: expected a whole GGUF file"),
    ],
)
def test_files_that_are_no_checkpoint(
    damage: Callable[[Path], Any], message: str, shards: Path, tmp_path: Path
) -> None:
    for name in NAMES:
        shutil.copy(shards / name, tmp_path / name)
    damage(tmp_path)
    named = tmp_path / "b.gguf"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(named if named.exists() else tmp_path / NAMES[1])


def test_a_tensor_that_two_files_hold(shards: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        shutil.copy(shards / name, tmp_path / name)
        extra = "token_embd.weight" if number == 1 else None
        edited(tmp_path / name, {**PLACE, "split.no": number, "split.tensors.count": TENSORS + 1}, extra)
    with pytest.raises(CheckpointError, match=r"00002.*each tensor in one file; found 'token_embd.weight' in .*00001"):
        open_checkpoint(tmp_path / NAMES[0])
