"""The sums of a fit of a lens in their file: how often they are written, and what is believed of them."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlin.common.errors import JaxlinError
from jaxlin.lens import running_mean
from jaxlin.lens.running_mean import RunningMean

PROMPTS = [[1, 2], [3, 4], [5, 6]]


def begun(folder: Path) -> Path:
    """What a fit leaves after one prompt."""
    first = RunningMean(folder / "l.pt", (2, 3), np.float32, "this")
    with first:
        first.add(PROMPTS[0], jnp.arange(18, dtype=jnp.float32).reshape(2, 3, 3))
    return folder / "l.pt.partial"


@pytest.mark.parametrize(("took", "gap"), [(0.0, 0), (0.5, 10), (2.0, 40), (30.0, 60)])
def test_a_twentieth_of_the_time_is_spent_on_writing(
    took: float, gap: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But it is done once a minute."""
    clock, written = 0.0, []

    def write(*_: Any) -> None:
        nonlocal clock
        clock += took
        written.append(clock)

    monkeypatch.setattr(running_mean, "write_atomically", write)
    monkeypatch.setattr(running_mean.time, "monotonic", lambda: clock)
    going = RunningMean(tmp_path / "l.pt", (2, 3), np.float32, "this")
    going.resume(PROMPTS)
    for second in range(100):
        clock += 1
        going.add([second], jnp.ones((2, 3, 3)))
    gaps = np.diff(written) - took
    assert len(gaps) > 0
    assert np.all(gaps >= max(gap, 1))
    assert np.all(gaps <= max(gap, 1) + 1)


@pytest.mark.parametrize("at", [-1, -4 * 18, -8 * 2 - 1])
def test_one_bit(at: int, tmp_path: Path) -> None:
    path = begun(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(JaxlinError, match="is damaged"):
        RunningMean(tmp_path / "l.pt", (2, 3), np.float32, "this").resume(PROMPTS)
    assert path.read_bytes() == raw


def test_an_interruption_says_that_the_same_call_goes_on(tmp_path: Path) -> None:
    going = RunningMean(tmp_path / "l.pt", (2, 3), np.float32, "this")
    going.add(PROMPTS[0], jnp.ones((2, 3, 3)))
    with pytest.raises(KeyboardInterrupt) as caught, going:
        raise KeyboardInterrupt
    path = tmp_path / "l.pt.partial"
    assert caught.value.__notes__ == [f"The sums of 1 prompts are in {path}: the same call goes on from there."]
