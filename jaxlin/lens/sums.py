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
from safetensors import SafetensorError

from jaxlin.checkpoint.safetensors import SafetensorsFile
from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import path_exists, write_atomically
from jaxlin.common.strict_json import parse_object

EVERY = 60.0
"""Seconds from one writing to the next, at most."""

SHARE = 0.05
"""Of the time, at most, that is spent on writing: sums that are written fast are written after each prompt."""


class _State(NamedTuple):
    """What is known of some prompts. Put in its place whole: an interruption comes between any two steps."""

    mean: Any
    deviations: np.ndarray
    n_prompts: int
    seen: str


class Sums:
    r"""The mean of the maps of the prompts so far, and their squared deviations; kept beside a file not yet made.

    With each map $J_n$ the mean moves by $\delta / n$ for $\delta = J_n - \bar J_{n-1}$, and the sum of squared
    deviations grows by $\lVert \delta \rVert^2 (n - 1) / n$: of equal maps it is zero, where a mean of squares less the
    square of the mean would be what rounding leaves. Source: Welford, "Note on a method for calculating corrected sums
    of squares and products", 1962.

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
        self._written, self._at, self._took = 0, time.monotonic(), 0.0

    def __enter__(self) -> "Sums":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.n_prompts > self._written:
            self._write()
        if isinstance(error, KeyboardInterrupt) and self.path is not None:
            error.add_note(
                f"The sums of {self.n_prompts} prompts are in {self.path}: the same call goes on from there."
            )

    @property
    def n_prompts(self) -> int:
        """How many have been added."""
        return self._state.n_prompts

    @property
    def mean(self) -> Float[np.ndarray, "n d e"]:
        """The mean map of each layer."""
        return np.asarray(self._state.mean)

    @property
    def squared_deviations(self) -> tuple[float, ...]:
        """The sum over prompts of the squared norm of how far each layer's map is from the mean."""
        return tuple(self._state.deviations.tolist())

    def add(self, ids: Sequence[int], found: Float[Array, "n d e"]) -> None:
        """Add the maps of a prompt."""
        before, count = self._state, self._state.n_prompts + 1
        mean, squares = jax.block_until_ready(_added(before.mean, found, count))
        deviations = before.deviations + np.asarray(squares, np.float64) * ((count - 1) / count)
        self._state = _State(mean, deviations, count, _seen(before.seen, ids))
        if time.monotonic() - self._at >= min(EVERY, self._took / SHARE):
            self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        state, began = self._state, time.monotonic()
        values = {"J_mean": np.asarray(state.mean), "squared_deviations": state.deviations}
        said = {
            "identity": self.identity,
            "prompts": state.n_prompts,
            "seen": state.seen,
            "checksum": _checksum(*values.values()),
        }
        metadata = {"jaxlin_fit": json.dumps(said)}
        write_atomically(self.path, lambda beside: safetensors.numpy.save_file(values, beside, metadata))
        self._written, self._at = state.n_prompts, time.monotonic()
        self._took = self._at - began

    def resume(self, prompts: Sequence[Sequence[int]]) -> None:
        """Take what an earlier fit of the first of `prompts` has left; write that there is nothing where none has.

        Raises:
            JaxlinError: it was left by a fit of something else, or it cannot be written.
        """
        if self.path is None or not path_exists(self.path):
            self._write()
            return
        try:
            file = SafetensorsFile(self.path)
            with safetensors.safe_open(self.path, "numpy") as opened:
                said = parse_object((opened.metadata() or {})["jaxlin_fit"])
            mean, deviations, count = file.read("J_mean"), file.read("squared_deviations"), said["prompts"]
            seen = functools.reduce(_seen, prompts[:count], "")
            as_written = said["checksum"] == _checksum(mean, deviations)
            there = (said["identity"], count, said["seen"], *_kind(mean), *_kind(deviations))
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise self._other() from error
        known = as_written and type(count) is int and 0 <= count <= len(prompts) and np.isfinite(mean).all()
        expected = (self.identity, count, seen, *_kind(self._state.mean), *_kind(self._state.deviations))
        if not known or there != expected or not (np.isfinite(deviations) & (deviations >= 0)).all():
            raise self._other()
        self._state = _State(jnp.asarray(mean), np.array(deviations), count, seen)
        self._written = count

    def _other(self) -> JaxlinError:
        return JaxlinError(
            f"Lens: {self.path} was begun with another model, other prompts, layers or arguments, or by an earlier "
            "jaxlin, or is damaged. Delete it or choose another path."
        )

    def delete(self) -> None:
        """Delete what was kept: the file itself is there."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _seen(before: str, ids: Sequence[int]) -> str:
    """What stands for the prompts before and this one."""
    return hashlib.sha256(f"{before} {list(map(int, ids))}".encode()).hexdigest()


def _kind(array: Any) -> tuple[tuple[int, ...], Any]:
    return array.shape, array.dtype


def _checksum(*arrays: np.ndarray) -> str:
    """What the sums in a file are held against."""
    return hashlib.blake2b(b"".join(each.tobytes() for each in arrays), digest_size=16).hexdigest()


@jax.jit
def _added(
    mean: Float[Array, "n d e"], found: Float[Array, "n d e"], count: Any
) -> tuple[Float[Array, "n d e"], Float[Array, " n"]]:
    """The mean with one more map, the `count`-th; and the squared norm of how far that is from the mean before."""
    apart = found.astype(mean.dtype) - mean
    return mean + apart / count, jnp.sum(jnp.square(apart), axis=(1, 2))
