"""Lenses in files: torch's ``.pt`` as published ones have it, or safetensors; and the sums of a fit that goes on."""

import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float

from jaxlin.checkpoint.hub import downloaded
from jaxlin.checkpoint.safetensors import SafetensorsFile
from jaxlin.errors import CheckpointError, JaxlinError, one_of
from jaxlin.fill import FLOATS
from jaxlin.layers import at_least_float32
from jaxlin.lens.jacobian_lens import ORDINARY, JacobianLens
from jaxlin.lens.pt import read_pt, write_pt

KINDS = (".safetensors", ".pt")
"""The files that a lens can be in."""

STORED = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
"""What matrices are stored in."""

EVERY = 60.0
"""Seconds from one writing of a fit's sums to the next."""


def a_path(name: Any) -> Path:
    """`name` as a path.

    Raises:
        JaxlinError: it is none.
    """
    if not isinstance(name, str | PathLike) or "\0" in os.fspath(name):
        raise JaxlinError(f"Lens: expected a path; found {name!r}."[:200])
    return Path(name)


def check_path(path: str | PathLike[str]) -> Path:
    """`path`, if a lens can be written there.

    Raises:
        JaxlinError: another kind of file, one that exists, or no such directory.
    """
    out = a_path(path)
    if out.suffix not in KINDS:
        raise JaxlinError(f"Lens: expected a path that ends in {' or '.join(KINDS)}; found {out}.")
    if out.exists():
        raise JaxlinError(f"Lens: {out} is there already. Delete it or choose another path.")
    if not out.parent.is_dir():
        raise JaxlinError(f"Lens: expected a directory {out.parent}; found none.")
    return out


def save(lens: JacobianLens, path: str | PathLike[str], *, dtype: str | None = None) -> None:
    """Write `lens`: a ``.pt`` as published lenses have it, which their readers take, or safetensors.

    A ``.pt`` has ``J``, ``n_prompts``, ``source_layers`` and ``d_model``; what else is known is under ``metadata``.

    Args:
        lens: the lens.
        path: where to; its ending says which kind.
        dtype: what matrices are stored in, ``"float16"``, ``"bfloat16"`` or ``"float32"``; float16, as published ones,
            unless given, or float32 where an entry is too large for it.

    Raises:
        JaxlinError: another kind of file, one that exists, no such dtype, or entries that it cannot hold.
    """
    if not isinstance(lens, JacobianLens):
        raise JaxlinError(f"Lens: expected one, as jaxlin.lens.fit gives; found a {type(lens).__name__}.")
    out, values = check_path(path), np.asarray(lens.maps)
    largest = float(np.max(np.abs(values), initial=0))
    if not np.isfinite(largest):
        raise JaxlinError("Lens: expected finite entries; found NaN or infinity.")
    fits = [name for name, kind in STORED.items() if largest <= float(ml_dtypes.finfo(kind).max)]
    chosen = one_of("dtype", dtype or ("float16" if "float16" in fits else "float32"), tuple(STORED))
    if chosen not in fits:
        raise JaxlinError(f"Lens: expected entries that {chosen} can hold; found {largest:.3g}. Give another dtype.")
    maps = values.astype(STORED[chosen])
    said = _said(lens)

    def write(fresh: Path) -> None:
        if out.suffix == ".pt":
            official = {"n_prompts": lens.prompts, "source_layers": list(lens.layers), "d_model": maps.shape[-1]}
            with fresh.open("wb") as file:
                write_pt(file, {"J": dict(zip(lens.layers, maps, strict=True)), **official, "metadata": said})
        else:
            numbers = {"layers": list(lens.layers), "prompts": lens.prompts, **said}
            safetensors.numpy.save_file({"J": maps}, fresh, {"jaxlin_lens": json.dumps(numbers)})

    _replaced(out, write)


def _said(lens: JacobianLens) -> dict[str, Any]:
    """What is known of a lens besides its matrices, under the names that other readers have for them."""
    said: dict[str, Any] = {"estimator": lens.estimator}
    if lens.skip_first is not None:
        said["skip_first_positions"] = lens.skip_first
    if lens.target_layer is not None:
        said["target_layer"] = lens.target_layer
    if lens.mean_square is not None:
        said["mean_square"] = list(lens.mean_square)
    return said


def _replaced(path: Path, write: Any) -> None:
    """Let `write` make a new file, then give it its name: it is whole or not there."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")  # another process may be writing the same
    try:
        write(fresh)
        os.replace(fresh, path)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JaxlinError(f"Lens: {path} cannot be written: {reason}.") from error
    finally:
        fresh.unlink(missing_ok=True)


def load(name: str | PathLike[str], filename: str | None = None, *, revision: str | None = None) -> JacobianLens:
    """A lens from a ``.pt`` or ``.safetensors`` file; nothing in it is run.

    A ``.pt`` may be a published lens or the checkpoint of a fit that was not finished (``jacobian_sum``).

    Args:
        name: the file; or, with `filename`, a repository on the hub such as ``"neuronpedia/jacobian-lens"``.
        filename: which file of the repository.
        revision: a branch, tag or commit of it.

    Raises:
        CheckpointError: no such file, or none of a lens.
    """
    path = a_path(name) if filename is None else downloaded(os.fspath(a_path(name)), filename, revision)
    if path.suffix == ".pt":
        return _from_pt(read_pt(path), path)
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    raise CheckpointError(
        f"{path}: expected a file that ends in {' or '.join(KINDS)}; with the name of a repository, give the file too."
    )


def _from_pt(found: Mapping[Any, Any], path: Path) -> JacobianLens:
    whole = "J" in found
    matrices, prompts = found.get("J" if whole else "jacobian_sum"), found.get("n_prompts" if whole else "n_done")
    if not isinstance(matrices, dict) or not matrices:
        keys = ", ".join(map(str, found))[:200]
        raise CheckpointError(f"{path}: expected matrices under J, as a Jacobian lens has; found keys {keys}.")
    metadata = found.get("metadata")
    said = {**found, **(metadata if isinstance(metadata, dict) else {})}
    said["skip_first_positions"] = said.get("skip_first_positions", said.get("skip_first"))
    return _checked(matrices, prompts, said, path, whole)


def _from_safetensors(path: Path) -> JacobianLens:
    file = SafetensorsFile(path)
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            said = json.loads((opened.metadata() or {})["jaxlin_lens"])
        layers, found = said["layers"], file.read("J")
        matrices = dict(zip(layers, found, strict=True))
        if len(matrices) < len(layers):
            raise ValueError("a layer is there twice")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a lens, as jaxlin.lens.save writes; found none.") from error
    return _checked(matrices, said.get("prompts"), said, path)


def _checked(
    matrices: Mapping[Any, Any], prompts: Any, said: Mapping[str, Any], path: Path, mean: bool = True
) -> JacobianLens:
    """A lens of what a file says: matrices of one square shape, finite; divided by `prompts` unless they are the mean.

    Raises:
        CheckpointError: anything else.
    """

    def wrong(expected: str, found: str) -> CheckpointError:
        return CheckpointError(f"{path}: expected {expected}; found {found}."[:400])

    # What is found may be nested without end: only what is known is shown.
    if type(prompts) is not int or not 1 <= prompts < 2**53:
        raise wrong("a number of prompts", f"{prompts}" if type(prompts) is int else f"a {type(prompts).__name__}")
    if any(type(layer) is not int or layer < 0 for layer in matrices):
        raise wrong("matrices of layers counted from 0", ", ".join(map(str, matrices)))
    layers = tuple(sorted(matrices))
    floats = [each for each in matrices.values() if isinstance(each, np.ndarray) and each.dtype in FLOATS]
    shapes = {each.shape for each in floats}
    shape = next(iter(shapes), ())
    if len(floats) < len(matrices) or len(shapes) != 1 or len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise wrong("square matrices of floats, of one shape", ", ".join(map(str, shapes)) or "none")
    maps = np.empty((len(matrices), *shape), np.float32)
    for at, layer in enumerate(layers):
        maps[at] = matrices[layer]
    if not mean:
        maps /= prompts
    if not np.isfinite(maps).all():
        raise wrong("finite matrices", "NaN or infinity")
    skip, squares, estimator = (said.get(key) for key in ("skip_first_positions", "mean_square", "estimator"))
    target = said.get("target_layer")
    known = isinstance(squares, list) and len(squares) == len(layers) and all(type(s) is float for s in squares)
    return JacobianLens(
        maps,
        layers,
        prompts,
        estimator if isinstance(estimator, str) else ORDINARY,
        skip if type(skip) is int else None,
        tuple(squares) if known and squares is not None else None,
        target if type(target) is int else None,
    )


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
        _replaced(self.path, lambda fresh: safetensors.numpy.save_file(values, fresh, {"jaxlin_fit": json.dumps(said)}))
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
