"""The sums of a fit that goes on, in memory and in a file beside the one that it will write."""

import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float

from jaxlin.checkpoint.safetensors import SafetensorsFile
from jaxlin.errors import JaxlinError
from jaxlin.layers import at_least_float32
from jaxlin.lens.paths import replaced

EVERY = 60.0
"""Seconds from one writing to the next."""


class _State(NamedTuple):
    """The sums of some prompts. Put in its place whole: an interruption comes between any two steps."""

    total: Any
    squares: np.ndarray
    prompts: int
    seen: str


class Sums:
    """The sum of the maps of the prompts so far, and the sum of their squares; kept beside a file that is not yet made.

    A context: what was added is written when it is left, whatever the reason.

    Args:
        out: the file that the fit will write; None to keep nothing.
        shape: layers and features.
        dtype: of the sums.
        identity: what the sums are of; others are not continued.
    """

    def __init__(self, out: Path | None, shape: tuple[int, int], dtype: Any, identity: str) -> None:
        layers, d = shape
        self.path = None if out is None else out.with_name(f"{out.name}.partial")
        self.identity = identity
        self._state = _State(jnp.zeros((layers, d, d), dtype), np.zeros(layers), 0, "")
        self._written, self._at = 0, time.monotonic()

    def __enter__(self) -> "Sums":
        return self

    def __exit__(self, *error: object) -> None:
        if self.prompts > self._written:
            self._write()

    @property
    def prompts(self) -> int:
        """How many have been added."""
        return self._state.prompts

    @property
    def mean(self) -> Float[np.ndarray, "n d e"]:
        """The mean map of each layer."""
        return np.asarray(self._state.total) / self.prompts

    @property
    def mean_square(self) -> tuple[float, ...]:
        """The mean of the squared norm of each layer's map."""
        return tuple((self._state.squares / self.prompts).tolist())

    def add(self, ids: Sequence[int], found: Float[Array, "n d e"]) -> None:
        """Add the maps of a prompt."""
        before = self._state
        total, squares = jax.block_until_ready(_added(before.total, found))
        squares = before.squares + np.asarray(squares, np.float64)
        self._state = _State(total, squares, before.prompts + 1, _seen(before.seen, ids))
        if time.monotonic() - self._at > EVERY:
            self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        state = self._state
        said = {"identity": self.identity, "prompts": state.prompts, "seen": state.seen}
        values = {"J_sum": np.asarray(state.total), "square_sum": state.squares}
        replaced(self.path, lambda fresh: safetensors.numpy.save_file(values, fresh, {"jaxlin_fit": json.dumps(said)}))
        self._written, self._at = state.prompts, time.monotonic()

    def resume(self, prompts: Sequence[Sequence[int]]) -> None:
        """Take what an earlier fit of the first of `prompts` has left; write that there is nothing where none has.

        Raises:
            JaxlinError: it was left by a fit of something else, or it cannot be written.
        """
        if self.path is None or not self.path.exists():
            self._write()
            return
        try:
            file = SafetensorsFile(self.path)
            with safetensors.safe_open(self.path, "numpy") as opened:
                said = json.loads((opened.metadata() or {})["jaxlin_fit"])
            total, squares, count = file.read("J_sum"), file.read("square_sum"), said["prompts"]
            seen = functools.reduce(_seen, prompts[:count], "")
            there = (said["identity"], count, said["seen"], total.shape, total.dtype, squares.shape, squares.dtype)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._other() from error
        whole, sums = self._state.total, self._state.squares
        known = type(count) is int and 0 <= count <= len(prompts) and np.isfinite(total).all()
        if not known or there != (self.identity, count, seen, whole.shape, whole.dtype, sums.shape, sums.dtype):
            raise self._other()
        self._state = _State(jnp.asarray(total), np.array(squares), count, seen)
        self._written = count

    def _other(self) -> JaxlinError:
        return JaxlinError(
            f"Lens: {self.path} was begun with another model, other prompts, layers or arguments, or is damaged. "
            "Delete it or choose another path."
        )

    def forget(self) -> None:
        """Delete what was kept: the file itself is there."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _seen(before: str, ids: Sequence[int]) -> str:
    """What stands for the prompts before and this one."""
    return hashlib.sha256(f"{before} {list(map(int, ids))}".encode()).hexdigest()


@jax.jit
def _added(
    total: Float[Array, "n d e"], found: Float[Array, "n d e"]
) -> tuple[Float[Array, "n d e"], Float[Array, " n"]]:
    return total + found, jnp.sum(jnp.square(at_least_float32(found)), axis=(1, 2))
