"""What the files say: every damage is one CheckpointError, and what is read is what was written."""

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import jaxlin
from jaxlin.checkpoint import Checkpoint, open_checkpoint
from jaxlin.checkpoint.gguf import GGUFFile, hf_name, unpermute
from jaxlin.checkpoint.safetensors import DTYPES
from jaxlin.common.errors import CheckpointError, JaxlinError

shared_files = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
F32_PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write_safetensors(path: Path, header: Any, data: bytes = b"") -> None:
    """A safetensors file of any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder without weights."""
    (tmp_path / "config.json").write_text('{"model_type": "any"}')
    return tmp_path


@pytest.fixture
def numbered(folder: Path) -> Path:
    """A checkpoint folder with one tensor of consecutive numbers."""
    save_file({"w": np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)}, folder / "model.safetensors")
    return folder


class TestSafetensors:
    def test_what_is_written_is_read(self, folder: Path) -> None:
        tensors = {"b": np.arange(3, dtype=np.int64), "a": np.float16([[1, 2], [3, 4]]), "none": np.ones((0, 3), "f4")}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        for name in ("tokenizer.json", "generation_config.json"):
            (folder / name).write_text("{}")
        checkpoint = open_checkpoint(str(folder))
        assert isinstance(checkpoint, Checkpoint)
        assert (checkpoint.source, checkpoint.format) == (str(folder), "safetensors")
        assert checkpoint.config == {"model_type": "any"}
        assert checkpoint.names() == tensors.keys()
        assert checkpoint.tokenizer_files.keys() == {"tokenizer.json", "generation_config.json"}
        for name, values in tensors.items():
            assert checkpoint.shape(name) == values.shape
            assert checkpoint.file_of(name) == folder / "model.safetensors"
            found = checkpoint.read(name)
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values)
        assert (checkpoint.dtype("a"), checkpoint.dtype("b")) == ("F16", "I64")

    @pytest.mark.parametrize("name", DTYPES)
    def test_every_dtype(self, folder: Path, name: str) -> None:
        """The bytes come back as they are, under ml_dtypes' types for bfloat16 and float8."""
        kind = DTYPES[name]
        data = bytes(range(2)) * (3 * kind.itemsize)
        header = {"x": {"dtype": name, "shape": [2, 3], "data_offsets": [0, len(data)]}}
        write_safetensors(folder / "model.safetensors", header, data)
        checkpoint = open_checkpoint(folder)
        assert (checkpoint.dtype("x"), checkpoint.shape("x")) == (name, (2, 3))
        assert checkpoint.read("x").dtype == kind
        assert checkpoint.read("x").tobytes() == data

    def test_bfloat16_and_float8_values(self, folder: Path) -> None:
        stored = {"BF16": np.array([1, -2.5], ml_dtypes.bfloat16), "F8_E4M3": np.array([448, -0.5], "float8_e4m3fn")}
        header, data = {}, b""
        for name, values in stored.items():
            offsets = [len(data), len(data) + values.nbytes]
            header[name] = {"dtype": name, "shape": [2], "data_offsets": offsets}
            data += values.tobytes()
        write_safetensors(folder / "model.safetensors", header, data)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.read("BF16").astype(float).tolist() == [1, -2.5]
        assert checkpoint.read("F8_E4M3").astype(float).tolist() == [448, -0.5]

    def test_a_scalar(self, folder: Path) -> None:
        save_file({"x": np.array(3, np.float32)}, folder / "model.safetensors")
        found = open_checkpoint(folder).read("x")
        assert isinstance(found, np.ndarray)
        assert found.shape == ()

    @shared_files
    @given(st.data())
    def test_slices(self, numbered: Path, data: st.DataObject) -> None:
        checkpoint = open_checkpoint(numbered)
        whole = checkpoint.read("w")
        axes = data.draw(st.integers(0, 3))
        index = tuple(data.draw(st.slices(size)) for size in whole.shape[:axes])
        np.testing.assert_array_equal(checkpoint.read_slice("w", index), whole[index])

    def test_a_slice_reads_only_its_bytes(self, numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = open_checkpoint(numbered)
        read, read_aligned = [], jaxlin.checkpoint.safetensors.read_aligned

        def counted(*args: Any) -> np.ndarray:
            found = read_aligned(*args)
            read.append(found.nbytes)
            return found

        monkeypatch.setattr(jaxlin.checkpoint.safetensors, "read_aligned", counted)
        assert checkpoint.read_rows("w", 1, 3).shape == (2, 5, 6)
        checkpoint.read_slice("w", (slice(2, 3), slice(4, 5), slice(1, 3)))
        checkpoint.read_slice("w", (slice(3, 3),))
        assert read == [2 * 5 * 6 * 4, 2 * 4, 0]

    def test_a_file_that_shrinks_while_it_is_open(self, numbered: Path) -> None:
        checkpoint = open_checkpoint(numbered)
        path = numbered / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(CheckpointError, match="shorter"):
            checkpoint.read("w")

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ([], "list, not an object"),
            (b"{", "not a JSON object"),
            (b"", "not a JSON object"),
            (b"\xff\xfe", "not a JSON object"),
            (b'{"x":' + b"[" * 100_000, "not a JSON object"),
            (b'{"x": {}, "x": {}}', "'x' is given twice"),
            ({"x": 3}, "without dtype"),
            ({"x": {"dtype": "F32", "shape": [2]}}, "without dtype"),
            ({"x": F32_PAIR | {"dtype": "F33"}}, "F33"),
            ({"x": F32_PAIR | {"dtype": ["F32"]}}, "F32"),
            ({"x": F32_PAIR | {"shape": [-2]}}, "-2"),
            ({"x": F32_PAIR | {"shape": [2.0]}}, "2.0"),
            ({"x": F32_PAIR | {"shape": [2, True]}}, "True"),
            ({"x": F32_PAIR | {"shape": 2}}, "shape 2"),
            ({"x": F32_PAIR | {"shape": [2**62, 4]}}, "bytes"),
            ({"x": F32_PAIR | {"shape": [10**400]}}, "shape"),
            ({"x": F32_PAIR | {"shape": [3]}}, "12 bytes"),
            ({"x": F32_PAIR | {"data_offsets": [8, 0]}}, "data_offsets"),
            ({"x": F32_PAIR | {"data_offsets": [0, 8, 8]}}, "data_offsets"),
            ({"x": F32_PAIR | {"data_offsets": [4, 12]}}, "tensor x at byte"),
            ({"x": F32_PAIR, "y": F32_PAIR}, "tensor y at byte"),
            ({"x": F32_PAIR, "y": F32_PAIR | {"data_offsets": [8, 16]}}, "end at byte"),
            ({}, "end at byte"),
            ({"__metadata__": {"a": 1}, "x": F32_PAIR}, "__metadata__"),
        ],
    )
    def test_a_wrong_header(self, folder: Path, header: Any, message: str) -> None:
        path = folder / "model.safetensors"
        write_safetensors(path, header, bytes(8))
        with pytest.raises(CheckpointError, match="truncated or damaged") as caught:
            open_checkpoint(folder)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 9])
    def test_a_wrong_length(self, folder: Path, length: int) -> None:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + bytes(8))
        with pytest.raises(CheckpointError, match=f"a header of {length} bytes"):
            open_checkpoint(folder)

    @shared_files
    @given(st.data())
    def test_cut_or_flipped(self, numbered: Path, data: st.DataObject) -> None:
        """A cut is always seen. A flip in the header is an error of ours or another valid header."""
        path = numbered / "model.safetensors"
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")
        try:
            path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
            with pytest.raises(CheckpointError):
                open_checkpoint(numbered)
            flipped = bytearray(whole)
            flipped[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(flipped)
            try:
                checkpoint = open_checkpoint(numbered)
            except CheckpointError:
                return
            assert sum(checkpoint.read(name).nbytes for name in checkpoint.names()) == len(whole) - header
        finally:
            path.write_bytes(whole)


class TestFolder:
    def index(self, folder: Path, weight_map: dict[str, Any]) -> None:
        """Write an index."""
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def test_shards(self, folder: Path) -> None:
        for shard in ("one", "two"):
            save_file({shard: np.full(2, len(shard), np.float32)}, folder / f"{shard}.safetensors")
        self.index(folder, {"one": "one.safetensors", "two": "two.safetensors"})
        checkpoint = open_checkpoint(folder)
        assert checkpoint.names() == {"one", "two"}
        assert checkpoint.file_of("two") == folder / "two.safetensors"

    def test_the_links_of_the_hubs_cache(self, tmp_path: Path) -> None:
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        save_file({"x": np.ones(2, np.float32)}, blobs / "0123")
        (snapshot / "config.json").write_text("{}")
        (snapshot / "part.safetensors").symlink_to("../../blobs/0123")
        self.index(snapshot, {"x": "part.safetensors"})
        assert open_checkpoint(snapshot).read("x").tolist() == [1, 1]

    @pytest.mark.parametrize(
        "file", ["../part.safetensors", "/part.safetensors", "a/b", "a\\b", "..", ".", "", 3, "\0"]
    )
    def test_a_shard_elsewhere(self, folder: Path, file: Any) -> None:
        self.index(folder, {"x": file})
        with pytest.raises(CheckpointError, match="same folder"):
            open_checkpoint(folder)

    def test_shards_that_do_not_fit(self, folder: Path) -> None:
        self.index(folder, {"x": "a.safetensors"})
        with pytest.raises(CheckpointError, match=r"shard a.safetensors"):
            open_checkpoint(folder)
        save_file({"y": np.ones(2, np.float32)}, folder / "a.safetensors")
        with pytest.raises(CheckpointError, match="expected tensor x, which the index names"):
            open_checkpoint(folder)
        for shard in "ab":
            save_file({"x": np.ones(2, np.float32), shard: np.ones(1, np.float32)}, folder / f"{shard}.safetensors")
        self.index(folder, {"x": "a.safetensors", "b": "b.safetensors"})
        with pytest.raises(CheckpointError, match=r"b.safetensors: .*one shard; found x in another too"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
    def test_only_a_pickle(self, folder: Path, file: str) -> None:
        (folder / file).write_bytes(b"never read")
        with pytest.raises(CheckpointError, match=f"{file}, a pickle.*Convert it to safetensors"):
            open_checkpoint(folder)

    def test_no_weights(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="found neither"):
            open_checkpoint(folder)
        (folder / "some.gguf").touch()
        with pytest.raises(CheckpointError, match=r"name that file: .*some.gguf"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"a": 1, "a": 2}', "[" * 100_000, "\x00"])
    def test_a_config_that_is_no_object(self, numbered: Path, content: str) -> None:
        (numbered / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config.json: expected a JSON object"):
            open_checkpoint(numbered)

    def test_a_config_of_other_bytes(self, numbered: Path) -> None:
        (numbered / "config.json").write_bytes(b"\xff\xfe{}")
        with pytest.raises(CheckpointError, match=r"config.json: expected a JSON object"):
            open_checkpoint(numbered)

    def test_a_config_that_is_no_file(self, numbered: Path) -> None:
        """A pipe is not waited for."""
        (numbered / "config.json").unlink()
        os.mkfifo(numbered / "config.json")
        with pytest.raises(CheckpointError, match=r"config.json: expected a file"):
            open_checkpoint(numbered)

    def test_no_config(self, numbered: Path) -> None:
        (numbered / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"expected a config.json; found none"):
            open_checkpoint(numbered)


class TestNames:
    @pytest.mark.parametrize(
        "name", ["./no", "~/no", "~nobody_here/no", "/no/no", "a/b/c/d", "no.gguf", "no", "", "x" * 5000, "a\0b", "a b"]
    )
    def test_a_path_that_is_not_there(self, name: str) -> None:
        with pytest.raises(CheckpointError, match="no such path exists"):
            open_checkpoint(name)

    def test_what_is_downloaded(self, numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def snapshot(repository: str, **options: Any) -> str:
            asked.append((repository, options["revision"]))
            there = ["config.json", "a.safetensors", "consolidated.safetensors", "original/a.safetensors", "a.bin"]
            options = {key: options[key] for key in ("allow_patterns", "ignore_patterns")}
            assert list(huggingface_hub.utils.filter_repo_objects(there, **options)) == there[:2]
            return str(numbered)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        assert open_checkpoint("org/name", revision="v1").names() == {"w"}
        assert asked == [("org/name", "v1")]

    @pytest.mark.parametrize("name", ["org/name/file.gguf", "org/name:file.gguf"])
    def test_one_file_of_a_repository(self, name: str, small_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(repository: str, file: str, revision: str | None) -> str:
            assert (repository, file, revision) == ("org/name", "file.gguf", None)
            return str(small_gguf)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        assert open_checkpoint(name).format == "gguf"

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("GatedRepoError", "HF_TOKEN"),
            ("RepositoryNotFoundError", "no such model"),
            ("RevisionNotFoundError", "no revision 'v9'"),
            ("RemoteEntryNotFoundError", "no file"),
            ("LocalEntryNotFoundError", "cannot be reached"),
            ("OfflineModeIsEnabled", "cannot be reached"),
            ("HfHubHTTPError", "cannot be reached"),
            (TypeError, "HF_ENDPOINT"),
        ],
    )
    def test_what_the_hub_says(self, kind: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        kind = getattr(errors, kind) if isinstance(kind, str) else kind

        def fail(*args: Any, **options: Any) -> None:
            # The constructors want a response of whatever client huggingface_hub has below it.
            raise kind.__new__(kind, "a long text\n" * 50)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError, match=message) as caught:
            open_checkpoint("org/name", revision="v9")
        assert str(caught.value).startswith("org/name: ")
        assert len(str(caught.value)) < 450


METADATA: dict[str, Any] = {
    "text": "naïve",
    "flag": True,
    "count": 7,
    "ratio": 0.5,
    "tokens": ["a", "", "日本"],
    "ids": [1, -2],
}


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of every type that the library can write, and metadata of every kind."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "any")
    writer.add_string("text", METADATA["text"])
    writer.add_bool("flag", METADATA["flag"])
    writer.add_uint32("count", METADATA["count"])
    writer.add_float32("ratio", METADATA["ratio"])
    writer.add_array("tokens", METADATA["tokens"])
    writer.add_array("ids", METADATA["ids"])
    values = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    for kind in (np.float64, np.float32, np.float16):
        writer.add_tensor(f"{kind.__name__}.weight", values.astype(kind))
    for name in ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("I32.weight", values.astype(np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class TestGGUF:
    def test_metadata(self, small_gguf: Path) -> None:
        checkpoint = open_checkpoint(small_gguf)
        assert isinstance(checkpoint, Checkpoint)
        assert (checkpoint.source, checkpoint.format) == (str(small_gguf), "gguf")
        assert checkpoint.config == {"general.architecture": "any", **METADATA}
        assert {key: type(value) for key, value in checkpoint.config.items() if key in METADATA} == {
            key: type(value) for key, value in METADATA.items()
        }

    def test_it_is_what_the_library_reads(self, small_gguf: Path) -> None:
        checkpoint, reader = open_checkpoint(small_gguf), gguf.GGUFReader(small_gguf)
        assert isinstance(checkpoint, GGUFFile)
        assert checkpoint.names() == {tensor.name for tensor in reader.tensors}
        for tensor in reader.tensors:
            kind = tensor.tensor_type
            assert (checkpoint.dtype(tensor.name), checkpoint.shape(tensor.name)) == (kind.name, (6, 64))
            assert checkpoint.file_of(tensor.name) == small_gguf
            assert checkpoint.read_raw(tensor.name).tobytes() == tensor.data.tobytes()
            if kind.name[0] == "I":
                continue
            found = checkpoint.read(tensor.name)
            expected = tensor.data if kind.name == "F64" else gguf.dequantize(tensor.data, kind)
            np.testing.assert_array_equal(found.astype(expected.dtype), expected)
            for index in [(slice(1, 4),), (slice(None, None, -2), slice(3, 50, 5)), (slice(0, 0),)]:
                np.testing.assert_array_equal(checkpoint.read_slice(tensor.name, index), found[index])

    def test_floats_stay_as_they_are(self, small_gguf: Path) -> None:
        checkpoint = open_checkpoint(small_gguf)
        assert checkpoint.read("float64.weight").dtype == np.float64
        assert checkpoint.read("float16.weight").dtype == np.float16
        assert checkpoint.read("BF16.weight").dtype == ml_dtypes.bfloat16
        assert checkpoint.read("Q4_0.weight").dtype == np.float32

    def test_a_type_that_is_not_decoded(self, small_gguf: Path) -> None:
        with pytest.raises(CheckpointError, match=r"tensor I32.weight: .*found I32"):
            open_checkpoint(small_gguf).read("I32.weight")

    def test_the_real_one(self, smollm2_gguf: Path) -> None:
        checkpoint = open_checkpoint(smollm2_gguf)
        assert len(checkpoint.names()) == 272
        assert len(checkpoint.config["tokenizer.ggml.tokens"]) == 49152
        assert isinstance(checkpoint, GGUFFile)
        for name in ("output_norm.weight", "blk.7.attn_k.weight", "blk.29.ffn_down.weight"):
            expected = gguf.dequantize(checkpoint.read_raw(name), gguf.GGMLQuantizationType[checkpoint.dtype(name)])
            np.testing.assert_array_equal(checkpoint.read(name), expected)
            np.testing.assert_array_equal(checkpoint.read_rows(name, 5, 9), expected[5:9])
        assert checkpoint.dtype("token_embd.weight") == "Q8_0"
        assert checkpoint.read_rows("token_embd.weight", 7, 9).shape == (2, 576)
        checkpoint.forget("tokenizer.")
        assert checkpoint.config["general.architecture"] == "llama"
        assert not [key for key in checkpoint.config if key.startswith("tokenizer.")]

    @pytest.mark.parametrize("content", [b"", b"GG", b"GGML" + bytes(60), b"GGUF" + struct.pack("<I", 1) + bytes(60)])
    def test_another_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.gguf"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            open_checkpoint(path)

    def test_big_endian(self, tmp_path: Path) -> None:
        path = tmp_path / "big.gguf"
        path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
        with pytest.raises(CheckpointError, match="big-endian"):
            open_checkpoint(path)

    @pytest.mark.parametrize(
        ("after", "offset", "value", "message"),
        [
            ("", 8, struct.pack("<Q", 2**60), "of 0 axes|ends within"),
            ("", 16, struct.pack("<Q", 2**60), "given twice|ends within|unknown|UTF-8"),
            ("count", 0, b"\x63", "unknown type 99"),
            ("ids", 8, struct.pack("<Q", 2**62), "ends within"),
            ("flag", -4, b"\xff", "not UTF-8"),
            ("tokens", 8, struct.pack("<Q", 2**40), "more than the file can hold"),
            ("Q4_0.weight", 0, b"\x09", "Q4_0.weight of 9 axes"),
            ("float16.weight", 0, b"\x00", "float16.weight of 0 axes"),
            ("Q4_0.weight", 4, b"\x41", "Q4_0.weight of Q4_0, blocks of 32, and of shape"),
            ("Q4_0.weight", 12, b"\x00", r"shape \(0, 64\)"),
            ("Q4_0.weight", 12, struct.pack("<Q", 2**62), "ends at byte"),
            ("Q4_0.weight", 20, b"\xc8", "Q4_0.weight of type 200"),
            ("Q4_0.weight", 24, b"\x01", "Q4_0.weight at byte"),
            ("Q4_0.weight", 24, bytes(8), "expected a multiple"),
            ("Q4_0.weight", 30, b"\x01", "Q4_0.weight ends at byte"),
        ],
    )
    def test_a_wrong_number(
        self, small_gguf: Path, tmp_path: Path, after: str, offset: int, value: bytes, message: str
    ) -> None:
        content = bytearray(small_gguf.read_bytes())
        at = content.index(struct.pack("<Q", len(after)) + after.encode()) + 8 + len(after) if after else 0
        content[at + offset : at + offset + len(value)] = value
        path = tmp_path / "wrong.gguf"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            open_checkpoint(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("code", [gguf.GGUFValueType.UINT8, gguf.GGUFValueType.BOOL, gguf.GGUFValueType.ARRAY])
    def test_a_huge_array(self, tmp_path: Path, code: int) -> None:
        """An array of bytes longer than the file: the reader of the gguf library never ends here."""
        key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, code, 2**44)
        path = tmp_path / "huge.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + bytes(16))
        with pytest.raises(CheckpointError, match=r"ends within|more than the file can hold"):
            open_checkpoint(path)

    def test_arrays_in_arrays(self, tmp_path: Path) -> None:
        nested = struct.pack("<IQ", gguf.GGUFValueType.ARRAY, 1) * 50
        path = tmp_path / "nested.gguf"
        key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", gguf.GGUFValueType.ARRAY)
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + nested)
        with pytest.raises(CheckpointError, match="nested more than"):
            open_checkpoint(path)

    @shared_files
    @given(st.data())
    def test_cut_or_flipped(self, small_gguf: Path, tmp_path: Path, data: st.DataObject) -> None:
        """A cut is always seen. A flip in the header is an error of ours or another valid file."""
        whole = small_gguf.read_bytes()
        path = tmp_path / "damaged.gguf"
        # What follows the last tensor is padding.
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - gguf.GGUF_DEFAULT_ALIGNMENT))])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
        flipped = bytearray(whole)
        flipped[data.draw(st.integers(0, 1000))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(flipped)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.names():
                assert checkpoint.read(name).size == math.prod(checkpoint.shape(name))
        except JaxlinError:
            pass


class TestGGMLNames:
    @pytest.mark.parametrize(
        ("ggml", "hf"),
        [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            ("blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm.weight"),
            ("blk.0.attn_qkv.weight", "model.layers.0.self_attn.qkv_proj.weight"),
            ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
            ("blk.3.post_ffw_norm.weight", "model.layers.3.post_feedforward_layernorm.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
            ("blk.0.unheard_of.weight", "blk.0.unheard_of.weight"),
            ("attn_q.weight", "attn_q.weight"),
        ],
    )
    def test_names(self, ggml: str, hf: str) -> None:
        assert hf_name(ggml) == hf

    def test_overrides(self) -> None:
        overrides = {"ffn_norm": "pre_feedforward_layernorm"}
        assert hf_name("blk.1.ffn_norm.weight", overrides) == "model.layers.1.pre_feedforward_layernorm.weight"
        assert hf_name("blk.1.attn_norm.weight", overrides) == "model.layers.1.input_layernorm.weight"

    @given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([(), (3,), (2, 5)]))
    def test_unpermute_is_the_inverse(self, heads: int, half: int, rest: tuple[int, ...]) -> None:
        """Of what llama.cpp's converter does to weights, biases and packed rows."""
        rows = np.arange(heads * 2 * half * math.prod(rest)).reshape(heads * 2 * half, *rest)
        permuted = rows.reshape(heads, 2, half, *rest).swapaxes(1, 2).reshape(rows.shape)
        np.testing.assert_array_equal(unpermute(permuted, heads), rows)

    def test_unpermute_of_packed_rows(self, small_gguf: Path) -> None:
        checkpoint = open_checkpoint(small_gguf)
        assert isinstance(checkpoint, GGUFFile)
        packed = unpermute(checkpoint.read_raw("Q4_1.weight"), 1)
        expected = unpermute(checkpoint.read("Q4_1.weight"), 1)
        np.testing.assert_array_equal(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q4_1), expected)
