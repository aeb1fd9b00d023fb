"""A dense map on disk: it appears once it is complete, and continues where it stopped."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import write_lock
from jaxlin.linearize import rows
from jaxlin.linearize.rows import block_sizes, default_block, dense_from_rows

MATRIX = jax.random.normal(jax.random.key(0), (10, 3, 4))


def write(out: Path | None, *, block: int = 3, stop_after: int | None = None, identity: str = "one") -> np.ndarray:
    """The rows of `MATRIX` through `dense`, interrupted after some blocks."""
    write.calls = 0

    def pull(u: jax.Array) -> jax.Array:
        write.calls += 1
        if stop_after is not None and write.calls > stop_after:
            raise KeyboardInterrupt
        return jnp.einsum("bd,dte->bte", u, MATRIX)

    found = dense_from_rows(pull, MATRIX.shape, MATRIX.dtype, block=block, out=out, identity=identity, progress=False)
    return found


@pytest.mark.parametrize("block", [1, 3, 10, 64])
def test_blocks_of_any_size(block: int) -> None:
    np.testing.assert_array_equal(write(None, block=block), MATRIX)


def test_blocks_are_put_in_place() -> None:
    """The array of the first block is the one that is returned: there is no second."""
    result = rows._InMemory(len(MATRIX))
    result.write(0, MATRIX[:3])
    address = result.array.unsafe_buffer_pointer()
    for start in (3, 6, 9):
        result.write(start, MATRIX[start : start + 3])
    assert result.finish().unsafe_buffer_pointer() == address
    np.testing.assert_array_equal(result.finish(), MATRIX)


def test_blocks_are_larger_on_an_accelerator_and_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    features = 12288 * 4
    on_cpu, whole = default_block(4096, 8, features), block_sizes().dense_map
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    blocks = {}
    for gigabytes in (8, 80, 800):
        monkeypatch.setattr(rows, "physical_memory", lambda size=gigabytes * 10**9: size)
        blocks[gigabytes] = default_block(4096, 8, features)
        assert 8 * blocks[gigabytes] * features <= gigabytes * 10**9 / 100
        assert block_sizes().dense_map <= gigabytes * 10**9 / 50
    assert on_cpu < blocks[8] < blocks[80] == blocks[800] < 4096
    assert whole < block_sizes().dense_map


def test_to_a_file(tmp_path: Path) -> None:
    found = write(tmp_path / "j.npy")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, MATRIX)
    np.testing.assert_array_equal(np.load(tmp_path / "j.npy"), MATRIX)
    assert [p.name for p in tmp_path.iterdir()] == ["j.npy"]


def test_interrupted_and_continued(tmp_path: Path) -> None:
    out = tmp_path / "j.npy"
    with pytest.raises(KeyboardInterrupt):
        write(out, stop_after=2)
    assert not out.exists()
    np.testing.assert_array_equal(write(out), MATRIX)
    assert write.calls == 2  # the rows 6..9; the first six were there


def test_begun_with_something_else(tmp_path: Path) -> None:
    out = tmp_path / "j.npy"
    with pytest.raises(KeyboardInterrupt):
        write(out, stop_after=1)
    with pytest.raises(JaxlinError, match="begun with another"):
        write(out, identity="two")


def interrupted(folder: Path, blocks: int = 2) -> tuple[Path, Path, Path]:
    """A file, and what an interruption leaves beside it: rows and note."""
    with pytest.raises(KeyboardInterrupt):
        write(folder / "j.npy", stop_after=blocks)
    return folder / "j.npy", folder / "j.npy.partial", folder / "j.npy.partial.json"


def test_an_interruption_says_that_the_same_call_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        write(tmp_path / "j.npy", stop_after=2)
    assert caught.value.__notes__ == [
        f"6 of 10 rows are in {tmp_path / 'j.npy.partial'}: the same call goes on from there."
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: "{", "damaged: expected a note"),
        (lambda said: "[]", "damaged: expected a note"),
        (lambda said: '{"a":' * 5000 + "1" + "}" * 5000, "damaged: expected a note"),
        (lambda said: {**said, "blocks": 99}, "damaged: expected a note"),
        (lambda said: {**said, "blocks": [[-3, "x"]]}, "damaged: expected a note"),
        (lambda said: {**said, "blocks": [[1e300, "x"]]}, "damaged: expected a note"),
        (lambda said: {**said, "blocks": said["blocks"] * 2}, "damaged: expected at most 10 rows, not 12"),
        (lambda said: {**said, "identity": None}, "begun with another"),
        (lambda said: {**said, "dtype": "float64"}, "begun with another"),
        (lambda said: {**said, "shape": [10, 4, 3]}, "begun with another"),
    ],
)
def test_a_note_is_not_believed(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    out, data, note = interrupted(tmp_path)
    changed, before = change(json.loads(note.read_text())), data.read_bytes()
    note.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(JaxlinError, match=message):
        write(out)
    assert data.read_bytes() == before
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-4], r"expected \d+ bytes, not \d+"),
        (lambda raw: raw + b"\0", r"expected \d+ bytes, not \d+"),
        (lambda raw: raw.replace(b"<f4", b"<i4"), "expected the header"),
        (lambda raw: raw.replace(b"'<f4'", b"'|O' "), "expected the header"),
        (lambda raw: b"", "bytes, not 0"),
    ],
)
def test_rows_of_another_file(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    out, data, _ = interrupted(tmp_path)
    data.write_bytes(change(data.read_bytes()))
    with pytest.raises(JaxlinError, match=f"is damaged: .*{message}"):
        write(out)


@pytest.mark.parametrize(("block", "left"), [(0, 4), (1, 3)])
def test_rows_that_are_not_as_written_are_computed_again(block: int, left: int, tmp_path: Path) -> None:
    out, data, _ = interrupted(tmp_path)
    raw = bytearray(data.read_bytes())
    raw[-MATRIX.nbytes + block * 3 * 48 + 7] ^= 1
    data.write_bytes(raw)
    with pytest.warns(UserWarning, match=f"{3 * block} of 10 rows are as they were written"):
        np.testing.assert_array_equal(write(out), MATRIX)
    assert write.calls == left


def test_a_second_process(tmp_path: Path) -> None:
    out = tmp_path / "j.npy"
    with write_lock(out), pytest.raises(JaxlinError, match="another process is writing it"):
        write(out)
    np.testing.assert_array_equal(write(out), MATRIX)
    assert [p.name for p in tmp_path.iterdir()] == ["j.npy"]


def test_a_full_disk_is_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(JaxlinError, match=r"j.npy cannot be written: No space left on device"):
        write(tmp_path / "j.npy")
    assert write.calls == 0
    assert not list(tmp_path.iterdir())


def test_the_room_is_taken_first(tmp_path: Path) -> None:
    _, data, _ = interrupted(tmp_path, blocks=0)
    assert data.stat().st_blocks * 512 >= data.stat().st_size > MATRIX.nbytes


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there.npy").write_bytes(b"mine")
    for out, message in [
        (tmp_path / "there.npy", "there already"),
        (tmp_path / "j.txt", "ends in .npy"),
        (tmp_path / "no" / "folder" / "j.npy", "cannot be written"),
    ]:
        with pytest.raises(JaxlinError, match=message):
            write(out)
    assert (tmp_path / "there.npy").read_bytes() == b"mine"
    with pytest.raises(JaxlinError, match="at least 1 row"):
        write(None, block=0)
