"""The values of a result: compared, as plain values, and as JSON beside arrays."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import jax.core
import numpy as np

from jaxlin.common.arrays import to_list
from jaxlin.common.printable import quoted

SPECIAL = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""The floats that JSON has no number for."""


def is_array(value: Any) -> bool:
    """Whether `value` is an array, or a NumPy number."""
    return isinstance(value, np.ndarray | np.generic | jax.Array)


def equal(one: Any, two: Any) -> bool:
    """Whether two values are equal, arrays in shape, dtype and every entry; NaN is equal to NaN."""
    if one is two:
        return True
    if any(isinstance(each, jax.core.Tracer) for each in (one, two)):
        return False
    if is_array(one) or is_array(two):
        if not (is_array(one) and is_array(two)):
            return False
        a, b = np.asarray(one), np.asarray(two)
        return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and type(one) is type(two):
        return len(one) == len(two) and all(map(equal, one, two))
    leaves, structure = jax.tree.flatten(one)
    if not (len(leaves) == 1 and leaves[0] is one):
        others, other_structure = jax.tree.flatten(two)
        return structure == other_structure and all(map(equal, leaves, others))
    if isinstance(one, float) and isinstance(two, float):
        return one == two or (one != one and two != two)
    return bool(type(one) is type(two) and one == two)


def plain(value: Any) -> Any:
    """`value` as plain Python values for JSON; numbers that are not finite in arrays are None."""
    if hasattr(type(value), "provenance"):
        return value.values()
    if is_array(value):
        return to_list(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str | int | float | None):
        return value
    return repr(value)


def encoded(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON, from which `decoded` makes it again; arrays are put into `arrays`.

    Numbers, text and None are themselves; anything else is an object with one key, which says what it is. What is none
    of these, such as a freeze rule of one's own, becomes its `repr`.
    """
    if isinstance(value, float) and not np.isfinite(value):
        return {"float": str(float(value))}
    if type(value) in (str, bool, int, float, type(None)):
        return value
    if is_array(value):
        name = str(len(arrays))
        arrays[name] = np.array(value, order="C")
        return {"array": name}
    if isinstance(value, Mapping):
        return {"mapping": [[encoded(key, arrays), encoded(each, arrays)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [encoded(each, arrays) for each in value]}
    if is_dataclass(value) and not isinstance(value, type) and hasattr(value, "provenance"):
        parts = {each.name: encoded(getattr(value, each.name), arrays) for each in fields(value)}
        return {"result": type(value).__name__, "fields": parts}
    return repr(value)


def decoded(value: Any, read: Callable[[str], np.ndarray], classes: Mapping[str, type]) -> Any:
    """The value that `encoded` wrote; `read` gives an array by its name, `classes` the results by theirs.

    Raises:
        ValueError: `encoded` writes nothing like it.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a list that is not marked as one")
        return value
    match value:
        case {"float": str(name)} if name in SPECIAL and len(value) == 1:
            return SPECIAL[name]
        case {"array": str(name)} if len(value) == 1:
            return read(name)
        case {"mapping": list(parts)} if len(value) == 1 and all(_is_pair(each) for each in parts):
            return {key: decoded(each, read, classes) for key, each in parts}
        case {"list": list(parts)} if len(value) == 1:
            return [decoded(each, read, classes) for each in parts]
        case {"tuple": list(parts)} if len(value) == 1:
            return tuple(decoded(each, read, classes) for each in parts)
        case {"result": str(name), "fields": dict(parts)} if name in classes and len(value) == 2:
            expected = [each.name for each in fields(classes[name])]
            if set(parts) != set(expected):
                raise ValueError(f"a {name} with the fields {quoted(list(parts))}; expected {', '.join(expected)}")
            return classes[name](**{key: decoded(parts[key], read, classes) for key in expected})
    raise ValueError(f"{quoted(value)}, which is no value of a result")


def _is_pair(value: Any) -> bool:
    """Whether a value of a file is a key that text or an integer is, and a value."""
    return isinstance(value, list) and len(value) == 2 and type(value[0]) in (str, int)
