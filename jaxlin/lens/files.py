"""Lenses in files: torch's ``.pt`` as published ones have it, or safetensors."""

import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from jaxtyping import Float

from jaxlin.checkpoint.hub import downloaded
from jaxlin.checkpoint.safetensors import FLOATS, SafetensorsFile
from jaxlin.common.errors import CheckpointError, JaxlinError, one_of
from jaxlin.common.files import write_atomically
from jaxlin.common.strict_json import parse_object
from jaxlin.lens.jacobian_lens import ORDINARY, JacobianLens, squared_norms
from jaxlin.lens.paths import KINDS, a_path, check_path
from jaxlin.lens.torch_files import read_pt
from jaxlin.lens.torch_writer import write_pt

STORED = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
"""What matrices are stored in."""


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
    layers, said = list(map(int, lens.layers)), _said(lens)

    def write(beside: Path) -> None:
        if out.suffix == ".pt":
            official = {"n_prompts": int(lens.prompts), "source_layers": layers, "d_model": maps.shape[-1]}
            with beside.open("wb") as file:
                write_pt(file, {"J": dict(zip(layers, maps, strict=True)), **official, "metadata": said})
        else:
            numbers = {"layers": layers, "prompts": int(lens.prompts), **said}
            safetensors.numpy.save_file({"J": maps}, beside, {"jaxlin_lens": json.dumps(numbers)})

    write_atomically(out, write)


def _said(lens: JacobianLens) -> dict[str, Any]:
    """What is known of a lens besides its matrices, under the names that other readers have for them."""
    said: dict[str, Any] = {"estimator": lens.estimator}
    if lens.skip_first is not None:
        said["skip_first_positions"] = lens.skip_first
    if lens.target_layer is not None:
        said["target_layer"] = lens.target_layer
    if lens.deviations is not None:
        said["squared_deviations"] = list(lens.deviations)
    return said


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
            said = parse_object((opened.metadata() or {})["jaxlin_lens"])
        layers, found = said["layers"], file.read("J")
        matrices = dict(zip(layers, found, strict=True))
        if len(matrices) < len(layers):
            raise ValueError("a layer is there twice")
    except (KeyError, TypeError, ValueError) as error:
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
    if len(set(map(id, floats))) < len(floats):  # of a small file a lens could be made that fills all memory
        raise wrong("matrices of their own", "one matrix for several layers")
    if len(floats) < len(matrices) or len(shapes) != 1 or len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise wrong("square matrices of floats, of one shape", ", ".join(map(str, shapes)) or "none")
    maps = np.empty((len(matrices), *shape), np.float32)
    for at, layer in enumerate(layers):
        maps[at] = matrices[layer]
    if not mean:
        maps /= prompts
    if not np.isfinite(maps).all():
        raise wrong("finite matrices", "NaN or infinity")
    skip, estimator, target = (said.get(key) for key in ("skip_first_positions", "estimator", "target_layer"))
    return JacobianLens(
        maps,
        layers,
        prompts,
        estimator if isinstance(estimator, str) else ORDINARY,
        skip if type(skip) is int else None,
        _deviations(said, maps, prompts),
        target if type(target) is int else None,
    )


def _deviations(said: Mapping[str, Any], maps: Float[np.ndarray, "n d d"], prompts: int) -> tuple[float, ...] | None:
    """The squared deviations that a file says; of one that was written before they were, from the mean of squares."""

    def numbers(key: str) -> list[float] | None:
        values = said.get(key)
        if not isinstance(values, list) or len(values) != len(maps):
            return None
        return values if all(type(v) is float and 0 <= v < np.inf for v in values) else None

    found, squares = numbers("squared_deviations"), numbers("mean_square")
    if found is None and squares is not None:
        found = (prompts * np.maximum(np.array(squares) - squared_norms(maps), 0)).tolist()
    return None if found is None else tuple(found)
