"""Arguments as their annotations name them, where a caller has the same numbers in another type.

`numpy.argmax` gives a `numpy.int64` and not an int, a probability is often an array of no axes, token ids an array, and
a matrix to draw one of JAX. A function whose annotation is ``int``, ``float``, ``Sequence[int]`` or an array of NumPy
takes all of these, and gets what its annotation says. Values that are traced stay as they are.
"""

import collections.abc
import operator
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import jax
import jax.core
import numpy as np

from jaxlin.common.annotations import check_of

Converter = Callable[[Any], Any]


def converter_of(annotation: Any) -> Converter | None:
    """The function that makes of a value, which the check of the annotation accepts, one of the type that it names.

    None if a value that is accepted is such a one, or if the annotation leaves open what is.
    """
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _of_alternatives(get_args(annotation))
    if hasattr(annotation, "dim_str"):
        return _as_numpy if annotation.array_type is np.ndarray else None
    kind, entries = annotation if origin is None else origin, get_args(annotation)
    if kind is int:
        return _as_int
    if kind is float:
        return _as_float
    if kind in (collections.abc.Sequence, list) and entries:
        return _of_entries(converter_of(entries[0]), list)
    if kind is tuple and entries[1:] == (...,):
        return _of_entries(converter_of(entries[0]), tuple)
    if kind is tuple and entries:
        return _of_fixed_entries([converter_of(each) for each in entries])
    if kind in (collections.abc.Mapping, dict) and entries:
        return _of_values(converter_of(entries[1]))
    return None


def _as_int(value: Any) -> Any:
    return value if isinstance(value, int | jax.core.Tracer) else operator.index(value)


def _as_float(value: Any) -> Any:
    if isinstance(value, float | jax.core.Tracer):
        return value
    try:
        return float(value)
    except OverflowError:  # an integer that no float is near, which the function refuses
        return value


def _as_numpy(value: Any) -> Any:
    is_other = isinstance(value, jax.Array | np.generic) and not isinstance(value, jax.core.Tracer)
    return np.asarray(value) if is_other else value


def _of_alternatives(annotations: tuple[Any, ...]) -> Converter | None:
    """By the first alternative that accepts the value; an array of JAX stays one where one of them is such an array."""
    converters = [converter_of(each) for each in annotations]
    if not any(converters):
        return None
    checks = [check_of(each) for each in annotations]
    takes_jax = [getattr(each, "array_type", None) is jax.Array for each in annotations]

    def convert(value: Any) -> Any:
        accepts = [check is not None and check(value) is None for check in checks]
        if isinstance(value, jax.Array) and any(map(operator.and_, accepts, takes_jax)):
            return value
        converter = next((each for each, accepted in zip(converters, accepts, strict=True) if accepted), None)
        return converter(value) if converter else value

    return convert


def _of_entries(of_entry: Converter | None, kind: type) -> Converter | None:
    """Of a list, or a tuple of any length, which an array becomes."""
    if of_entry is None:
        return None

    def convert(value: Any) -> Any:
        if isinstance(value, jax.core.Tracer):
            return value
        before = np.asarray(value).tolist() if hasattr(value, "dtype") else value
        entries = [of_entry(entry) for entry in before]
        is_right = kind is list or isinstance(value, tuple)
        stays = before is value and is_right and all(map(operator.is_, before, entries))
        return value if stays else tuple(entries) if isinstance(value, tuple) else kind(entries)

    return convert


def _of_fixed_entries(of_entry: list[Converter | None]) -> Converter | None:
    if not any(of_entry):
        return None

    def convert(value: Any) -> Any:
        entries = tuple(each(entry) if each else entry for each, entry in zip(of_entry, value, strict=True))
        return value if isinstance(value, tuple) and all(map(operator.is_, value, entries)) else entries

    return convert


def _of_values(of_value: Converter | None) -> Converter | None:
    return None if of_value is None else lambda value: {key: of_value(each) for key, each in value.items()}
