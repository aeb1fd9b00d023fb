"""Lens files: torch's ``.pt`` in the layout of published lenses, or safetensors.

This file reads and writes the fields of a lens; `jaxlin.lens.jacobian_lens` makes lenses of them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from jaxtyping import Float

from jaxlin.checkpoint.safetensors import FLOATS, SafetensorsFile
from jaxlin.common.errors import CheckpointError, JaxlinError, one_of
from jaxlin.common.files import path_exists, write_atomically
from jaxlin.common.printable import kind_of, quoted
from jaxlin.common.strict_json import parse_object
from jaxlin.lens.pt_reader import read_pt
from jaxlin.lens.pt_writer import write_pt
from jaxlin.results.files import parse_provenance

SUFFIXES = (".safetensors", ".pt")
"""The endings of the files that a lens can be in."""

MATRIX_DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
"""The dtypes that matrices can be stored in."""

ORDINARY = "jacobian_lens"
"""The estimator of published lenses: the ordinary derivative of the model, with nothing frozen."""


def as_path(name: Any) -> Path:
    """`name` as a path.

    Raises:
        JaxlinError: `name` is not a path.
    """
    if not isinstance(name, str | PathLike) or "\0" in os.fspath(name):
        raise JaxlinError(f"Lens: expected a path; found {quoted(name)}.")
    return Path(name)


def new_path(name: str | PathLike[str]) -> Path:
    """`name` as the path of a lens file that can be written.

    Raises:
        JaxlinError: another ending, a file that exists, or no such directory.
    """
    path = as_path(name)
    if path.suffix not in SUFFIXES:
        raise JaxlinError(f"Lens: expected a path that ends in {' or '.join(SUFFIXES)}; found {path}.")
    if path_exists(path):
        raise JaxlinError(f"Lens: {path} is there already. Delete it or choose another path.")
    if not path.parent.is_dir():
        raise JaxlinError(f"Lens: expected a directory {path.parent}; found none.")
    return path


def write_fields(
    path: Path,
    maps: Float[np.ndarray, "n d d"],
    source_layers: Sequence[int],
    n_prompts: int,
    metadata: Mapping[str, Any],
    dtype: str | None,
) -> None:
    """Write a lens to `path`, which `new_path` gave.

    Raises:
        JaxlinError: no such dtype, entries too large for it, or a file that cannot be written.
    """
    largest = float(np.max(np.abs(maps), initial=0))
    if not np.isfinite(largest):
        raise JaxlinError("Lens: expected finite entries; found NaN or infinity.")
    wide_enough = [name for name, kind in MATRIX_DTYPES.items() if largest <= float(ml_dtypes.finfo(kind).max)]
    default = "float16" if "float16" in wide_enough else "float32"
    name = one_of("dtype", dtype or default, tuple(MATRIX_DTYPES))
    if name not in wide_enough:
        raise JaxlinError(f"Lens: expected entries in {name}'s range; found {largest:.3g}. Give another dtype.")
    # In the order of C, whatever that of the maps: safetensors writes the memory of an array as it lies.
    stored, layers = maps.astype(MATRIX_DTYPES[name], order="C"), list(map(int, source_layers))

    def write(temporary: Path) -> None:
        if path.suffix == ".pt":
            numbers = {"n_prompts": int(n_prompts), "source_layers": layers, "d_model": maps.shape[-1]}
            with temporary.open("wb") as file:
                write_pt(file, {"J": dict(zip(layers, stored, strict=True)), **numbers, "metadata": metadata})
        else:
            text = json.dumps({"layers": layers, "prompts": int(n_prompts), **metadata})
            safetensors.numpy.save_file({"J": stored}, temporary, {"jaxlin_lens": text})

    write_atomically(path, write)


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of the `JacobianLens` in a file, by name, and its provenance. Nothing in the file is run.

    Raises:
        CheckpointError: no such file, or one without a lens.
    """
    if path.suffix == ".pt":
        return _from_pt(read_pt(path), path)
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    raise CheckpointError(
        f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}. A lens on the hub is loaded by "
        "JacobianLens.from_pretrained(repo, filename)."
    )


def _from_pt(content: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    # The checkpoint of a fit that was not finished has a sum in the place of the mean.
    is_mean = "J" in content
    matrices, n_prompts = (content.get(key) for key in (("J", "n_prompts") if is_mean else ("jacobian_sum", "n_done")))
    if not isinstance(matrices, dict) or not matrices:
        keys = ", ".join(map(str, content))[:200]
        raise CheckpointError(f"{path}: expected matrices under J, as a Jacobian lens has; found keys {keys}.")
    nested = content.get("metadata")
    metadata = {**content, **(nested if isinstance(nested, dict) else {})}
    metadata["skip_first_positions"] = metadata.get("skip_first_positions", metadata.get("skip_first"))
    return _checked(matrices, n_prompts, metadata, path, is_mean)


def _from_safetensors(path: Path) -> dict[str, Any]:
    file = SafetensorsFile(path)
    try:
        metadata = parse_object(safetensors_text(path, "jaxlin_lens"))
        layers, maps = metadata["layers"], file.read("J")
        matrices = dict(zip(layers, maps, strict=True))
        if len(matrices) < len(layers):
            raise ValueError("a layer is there twice")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a lens, as jaxlin.lens.save writes; found none.") from error
    return _checked(matrices, metadata.get("prompts"), metadata, path)


def safetensors_text(path: Path, key: str) -> str:
    """The text under `key` in the metadata of a safetensors file.

    Raises:
        KeyError: no such text.
        SafetensorError: not a safetensors file.
    """
    with safetensors.safe_open(path, "numpy") as opened:
        return (opened.metadata() or {})[key]


def _checked(
    matrices: Mapping[Any, Any], n_prompts: Any, metadata: Mapping[str, Any], path: Path, is_mean: bool = True
) -> dict[str, Any]:
    """The fields of a lens from the content of a file.

    The matrices must be finite and of one square shape. They are divided by `n_prompts` unless they are the mean.

    Raises:
        CheckpointError: anything else.
    """

    def wrong(expected: str, value: str) -> CheckpointError:
        return CheckpointError(f"{path}: expected {expected}; found {value}."[:400])

    # A value of a file may be nested without end: only values of a type that is checked first are shown.
    if type(n_prompts) is not int or not 1 <= n_prompts < 2**53:
        number = f"{n_prompts}" if type(n_prompts) is int else kind_of(n_prompts)
        raise wrong("a number of prompts", number)
    if any(type(layer) is not int or layer < 0 for layer in matrices):
        raise wrong("matrices of layers counted from 0", ", ".join(map(str, matrices)))
    layers = tuple(sorted(matrices))
    floats = [each for each in matrices.values() if isinstance(each, np.ndarray) and each.dtype in FLOATS]
    shapes = {each.shape for each in floats}
    shape = next(iter(shapes), ())
    if len(set(map(id, floats))) < len(floats):  # a small file could otherwise make a lens that fills all memory
        raise wrong("a matrix of its own for each layer", "one matrix for several layers")
    if len(floats) < len(matrices) or len(shapes) != 1 or len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise wrong("square matrices of floats, of one shape", ", ".join(map(str, shapes)) or "none")
    maps = np.empty((len(matrices), *shape), np.float32)
    for index, layer in enumerate(layers):
        maps[index] = matrices[layer]
    if not is_mean:
        maps /= n_prompts
    if not np.isfinite(maps).all():
        raise wrong("finite matrices", "NaN or infinity")
    skip, estimator, target = (metadata.get(key) for key in ("skip_first_positions", "estimator", "target_layer"))
    try:
        provenance = parse_provenance(metadata["provenance"]) if "provenance" in metadata else None
    except ValueError as error:
        raise wrong("a lens whose provenance can be read", str(error)) from error
    return {
        "provenance": provenance,
        "maps": maps,
        "source_layers": layers,
        "n_prompts": n_prompts,
        "estimator": estimator if isinstance(estimator, str) else ORDINARY,
        "skip_first": skip if type(skip) is int else None,
        "squared_deviations": _squared_deviations(metadata, maps, n_prompts),
        "target_layer": target if type(target) is int else None,
    }


def _squared_deviations(
    metadata: Mapping[str, Any], maps: Float[np.ndarray, "n d d"], n_prompts: int
) -> tuple[float, ...] | None:
    """The squared deviations in a file, or None; older files have the mean of the squared norms in their place."""

    def numbers(key: str) -> list[float] | None:
        values = metadata.get(key)
        if not isinstance(values, list) or len(values) != len(maps):
            return None
        return values if all(type(v) is float and 0 <= v < np.inf for v in values) else None

    deviations, squares = numbers("squared_deviations"), numbers("mean_square")
    if deviations is None and squares is not None:
        deviations = (n_prompts * np.maximum(np.array(squares) - squared_norms(maps), 0)).tolist()
    return None if deviations is None else tuple(deviations)


def squared_norms(maps: Any) -> Float[np.ndarray, " n"]:
    r"""$\lVert J_l \rVert_F^2$ of each matrix, summed in float64."""
    return np.array([np.sum(np.square(each, dtype=np.float64)) for each in np.asarray(maps)])
