"""The mean of the maps of the prompts so far, and the file from which an interrupted fit resumes."""

import functools
import hashlib
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
from jaxlin.common.files import PartialFile, checksum, path_exists, resume_hint, write_atomically
from jaxlin.common.strict_json import parse_object
from jaxlin.lens.files import safetensors_text

MAX_SECONDS = 60.0
"""The longest time from one writing of the file to the next."""

MAX_SHARE = 0.05
"""The largest share of the time that is spent on writing; a file that is written fast is written after each prompt."""


class _State(NamedTuple):
    """The statistics of some prompts. They are replaced together: an interruption can come between any two steps."""

    mean: Any
    squared_deviations: np.ndarray
    n_prompts: int
    prompts_hash: str


class RunningMean:
    r"""The mean and the squared deviations of the maps of the prompts so far, in memory and in ``OUT.partial``.

    With each map $J_n$ the mean moves by $\delta / n$ for $\delta = J_n - \bar J_{n-1}$, and the sum of squared
    deviations grows by $\lVert \delta \rVert^2 (n - 1) / n$. For equal maps that sum is exactly zero, whereas the mean
    of squares minus the square of the mean would be a rounding error. Source: Welford, "Note on a method for
    calculating corrected sums of squares and products", 1962.

    It is a context manager: when the context is left, for whatever reason, the file is brought up to date.

    Args:
        out: the file that the fit will write; None to keep the statistics in memory only.
        shape: the number of layers and of features.
        dtype: the dtype of the mean.
        identity: a hash of all that determines the maps but the prompts. A file of another identity is not resumed.
    """

    def __init__(self, out: Path | None, shape: tuple[int, int], dtype: Any, identity: str) -> None:
        layers, d = shape
        self._out, self._identity = out, identity
        self._state = _State(jnp.zeros((layers, d, d), dtype), np.zeros(layers), 0, "")
        self._n_written, self._last_write, self._write_seconds = 0, time.monotonic(), 0.0

    def __enter__(self) -> "RunningMean":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.n_prompts > self._n_written:
            self._write()
        if isinstance(error, KeyboardInterrupt) and self._out is not None:
            error.add_note(resume_hint(f"The sums of {self.n_prompts} prompts are", self._partial(self._out, "").path))

    @property
    def n_prompts(self) -> int:
        """The number of prompts that have been added."""
        return self._state.n_prompts

    @property
    def mean(self) -> Float[np.ndarray, "n d e"]:
        """The mean map of each layer."""
        return np.asarray(self._state.mean)

    @property
    def squared_deviations(self) -> tuple[float, ...]:
        """For each layer, the sum over prompts of the squared Frobenius norm of the map minus the mean."""
        return tuple(self._state.squared_deviations.tolist())

    def add(self, ids: Sequence[int], maps: Float[Array, "n d e"]) -> None:
        """Add the maps of the prompt `ids`."""
        before, count = self._state, self._state.n_prompts + 1
        mean, squares = jax.block_until_ready(_updated_mean(before.mean, maps, count))
        deviations = before.squared_deviations + np.asarray(squares, np.float64) * ((count - 1) / count)
        self._state = _State(mean, deviations, count, _extended_hash(before.prompts_hash, ids))
        if time.monotonic() - self._last_write >= min(MAX_SECONDS, self._write_seconds / MAX_SHARE):
            self._write()

    def _partial(self, out: Path, prompts_hash: str) -> PartialFile:
        identity = {"identity": self._identity, "seen": prompts_hash}
        return PartialFile(out, "Lens", identity, "model, other prompts, layers or arguments")

    def _write(self) -> None:
        if self._out is None:
            return
        state, start = self._state, time.monotonic()
        partial = self._partial(self._out, state.prompts_hash)
        values = {"J_mean": np.asarray(state.mean), "squared_deviations": state.squared_deviations}
        record = partial.record(prompts=state.n_prompts, checksum=_checksum(values))
        metadata = {"jaxlin_fit": record}
        write_atomically(partial.path, lambda path: safetensors.numpy.save_file(values, path, metadata))
        self._n_written, self._last_write = state.n_prompts, time.monotonic()
        self._write_seconds = self._last_write - start

    def resume(self, prompts: Sequence[Sequence[int]]) -> None:
        """Continue with the statistics that an interrupted fit of the first of `prompts` has left, if there are any.

        Where there are none, a file without prompts is written: that shows at once whether it can be written.

        Raises:
            JaxlinError: the file belongs to another fit, is damaged, or cannot be written.
        """
        if self._out is None:
            return
        partial = self._partial(self._out, "")
        if not path_exists(partial.path):
            self._write()
            return
        expected = "the mean and the deviations of some prompts"
        try:
            file, record = SafetensorsFile(partial.path), safetensors_text(partial.path, "jaxlin_fit")
            n_prompts = parse_object(record)["prompts"]
            if type(n_prompts) is not int or n_prompts < 0:
                raise ValueError("no number of prompts")
        except (KeyError, ValueError, SafetensorError) as error:
            raise partial.damage(expected) from error
        partial = self._partial(self._out, functools.reduce(_extended_hash, prompts[:n_prompts], ""))
        progress = partial.progress(record, expected)
        arrays = {"J_mean": self._state.mean, "squared_deviations": self._state.squared_deviations}
        values = {name: file.read(name) for name in arrays if name in file.names()}
        if (
            n_prompts > len(prompts)
            or values.keys() != arrays.keys()
            or progress.get("checksum") != _checksum(values)
            or any((values[name].shape, values[name].dtype) != (a.shape, a.dtype) for name, a in arrays.items())
            or not all(np.isfinite(each).all() for each in values.values())
            or (values["squared_deviations"] < 0).any()
        ):
            raise partial.damage(expected)
        # A copy of the deviations: the array from the file may be read-only.
        mean, deviations = jnp.asarray(values["J_mean"]), np.array(values["squared_deviations"])
        self._state = _State(mean, deviations, n_prompts, partial.identity["seen"])
        self._n_written = n_prompts

    def delete_file(self) -> None:
        """Delete ``OUT.partial``, which is not needed once the lens is written."""
        if self._out is not None:
            self._partial(self._out, "").path.unlink(missing_ok=True)


def _extended_hash(before: str, ids: Sequence[int]) -> str:
    """The hash of a list of prompts with one more, from that of the list before."""
    return hashlib.sha256(f"{before} {list(map(int, ids))}".encode()).hexdigest()


def _checksum(values: dict[str, np.ndarray]) -> str:
    return checksum(*(each.tobytes() for each in values.values()))


@jax.jit
def _updated_mean(
    mean: Float[Array, "n d e"], maps: Float[Array, "n d e"], count: Any
) -> tuple[Float[Array, "n d e"], Float[Array, " n"]]:
    r"""The mean with one more map, the `count`-th, and $\lVert \delta \rVert^2$ of the map minus the mean before."""
    delta = maps.astype(mean.dtype) - mean
    return mean + delta / count, jnp.sum(jnp.square(delta), axis=(1, 2))
