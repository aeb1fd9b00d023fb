"""A dense map on disk: whole or not there, and continued where it stopped."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlin import rows
from jaxlin.errors import JaxlinError
from jaxlin.rows import default_block, dense, sizes

MATRIX = jax.random.normal(jax.random.key(0), (10, 3, 4))


def write(out: Path | None, *, block: int = 3, stop_after: int | None = None, identity: str = "one") -> np.ndarray:
    """The rows of `MATRIX` through `dense`, interrupted after some blocks."""
    calls = 0

    def pull(u: jax.Array) -> jax.Array:
        nonlocal calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise KeyboardInterrupt
        return jnp.einsum("bd,dte->bte", u, MATRIX)

    found = dense(pull, MATRIX.shape, MATRIX.dtype, block=block, out=out, identity=identity, progress=False)
    write.calls = calls
    return found


@pytest.mark.parametrize("block", [1, 3, 10, 64])
def test_blocks_of_any_size(block: int) -> None:
    np.testing.assert_array_equal(write(None, block=block), MATRIX)


def test_blocks_are_put_in_place() -> None:
    """The array of the first block is the one that is returned: there is no second."""
    placed = rows._InMemory(len(MATRIX))
    placed.write(0, MATRIX[:3])
    address = placed.whole.unsafe_buffer_pointer()
    for start in (3, 6, 9):
        placed.write(start, MATRIX[start : start + 3])
    assert placed.finish().unsafe_buffer_pointer() == address
    np.testing.assert_array_equal(placed.finish(), MATRIX)


def test_blocks_are_larger_on_an_accelerator_and_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    features = 12288 * 4
    on_cpu, whole = default_block(4096, 8, features), sizes().whole
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    blocks = {}
    for gigabytes in (8, 80, 800):
        monkeypatch.setattr(rows, "physical_memory", lambda there=gigabytes * 10**9: there)
        blocks[gigabytes] = default_block(4096, 8, features)
        assert 8 * blocks[gigabytes] * features <= gigabytes * 10**9 / 100
        assert sizes().whole <= gigabytes * 10**9 / 50
    assert on_cpu < blocks[8] < blocks[80] == blocks[800] < 4096
    assert whole < sizes().whole


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


def test_a_damaged_note_is_not_trusted(tmp_path: Path) -> None:
    out = tmp_path / "j.npy"
    with pytest.raises(KeyboardInterrupt):
        write(out, stop_after=1)
    (tmp_path / "j.npy.partial.json").write_text("{")
    with pytest.raises(JaxlinError, match="begun with another"):
        write(out)


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
