"""Annotations as checks: what a type says of a value, in words, and whether a value is so.

Plain types, classes, arrays of jaxtyping, and lists, tuples, dicts and alternatives of these are understood; of others
nothing is said. A type of its own is ``Annotated[Any, check]``, where `check` returns a `Fault`, or raises an error.
beartype, which the tests check all annotations with, names types and not what a user has to pass.
"""

import collections.abc
import inspect
import math
import numbers
import operator
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import jax
import jax.core
import numpy as np

from jaxlin.common.printable import kind_of, quoted, with_article

ORIGINS = {
    "ConfigReader": "the keys of a config.json, as jaxlin.checkpoint.config.ConfigReader reads them",
    "CheckpointFolder": "an open folder, as jaxlin.checkpoint.open_checkpoint gives",
    "Context": "a jaxlin.nn.context.Context",
    "Circuit": "a circuit, as jaxlin.circuit gives",
    "Config": "the configuration of a model, as model.config",
    "Decoder": "a model, as jaxlin.load gives",
    "Edit": "an edit, as the functions add, apply and ablate of jaxlin.activations give",
    "Explanation": "an explanation, as jaxlin.explain gives",
    "FrozenFactors": "frozen factors, as jaxlin.freeze gives",
    "JacobianLens": "a lens, as jaxlin.lens.fit and jaxlin.lens.load give",
    "LocalMap": "a local linear map, as jaxlin.local_map gives",
    "Provenance": "a jaxlin.results.Provenance",
    "Recording": "a recording, as jaxlin.linearize.record gives",
    "SVD": "singular triplets, as the method svd of a local linear map gives",
    "Tokenizer": "a tokenizer, as jaxlin.load gives beside the model",
}
"""What a value of each class is and where it comes from, by the name of the class."""


class Fault(NamedTuple):
    """What is wrong with an argument: the index of the part that is wrong, what was expected there, and its value.

    The advice is a sentence that says what to do, or empty where that follows from the others.
    """

    path: str
    expected: str
    value: Any
    advice: str = ""


Check = Callable[[Any], Fault | None]


def is_integer(number: Any) -> bool:
    """Whether `number` is an integer of Python, NumPy or JAX, and not a bool."""
    if isinstance(number, bool):
        return False
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def described(value: Any) -> str:
    """A value as the end of a message names it: itself if it is short, its shape, or its class."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        if isinstance(value, jax.core.Tracer):
            return f"one of shape {tuple(value.shape)} that is traced, within jax.jit, jax.vmap or jax.grad"
        return f"an array of {value.dtype} of shape {tuple(value.shape)}"
    plain = str | bytes | bool | int | float | complex | list | tuple | dict | set | Path | None
    return quoted(value) if isinstance(value, plain) else kind_of(value)


def check_of(annotation: Any) -> Check | None:
    """The check of one annotation; None if it allows anything, or says too little."""
    origin = get_origin(annotation)
    if origin is Annotated:
        checks: list[Any] = [each for each in annotation.__metadata__ if callable(each)]
        return checks[0] if checks else None
    if origin in (Union, types.UnionType):
        return _any_of(get_args(annotation))
    if origin is Literal:
        are_texts = all(isinstance(each, str) for each in get_args(annotation))
        return accepting(*_PLAIN[str]) if are_texts else None
    if hasattr(annotation, "dim_str"):
        return _array(annotation)
    kind = annotation if origin is None else origin
    if kind is tuple and not _has_any_length(annotation):
        return _fixed_tuple(get_args(annotation))
    if kind in (collections.abc.Sequence, list, tuple):
        return _sequence(kind, get_args(annotation))
    if kind in (collections.abc.Mapping, dict):
        return _mapping(get_args(annotation))
    if kind in _PLAIN:
        return accepting(*_PLAIN[kind])
    if kind in (Any, inspect.Parameter.empty) or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return None
    return _of_class(kind)


def accepting(expected: str, accepts: Callable[[Any], bool]) -> Check:
    """The check by a function of the value, which a type of its own is annotated with."""
    return lambda value: None if accepts(value) else Fault("", expected, value)


def having(expected: str, *attributes: str) -> Check:
    """The check that a value has these attributes, for classes that cannot be imported where they are named."""
    return accepting(expected, lambda value: all(hasattr(value, each) for each in attributes))


def is_numeric(value: Any) -> bool:
    """Whether `value` is an array of numbers, or lists of numbers of equal lengths that make one."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError):
            return False
    return getattr(value.dtype, "kind", "O") in "iufV"


def _of_class(kind: type) -> Check:
    expected = ORIGINS.get(kind.__name__, with_article(kind.__name__))
    if kind.__name__ == "Tokenizer":  # any other that has its methods serves as well
        return having(expected, "encode", "decode")
    return accepting(expected, lambda value: isinstance(value, kind))


def _any_of(annotations: tuple[Any, ...]) -> Check | None:
    """The check of alternatives; of those with a pair among them the function itself says what they are for."""
    others = [each for each in annotations if each is not type(None)]
    known = [check for check in map(check_of, others) if check is not None]
    has_pair = any(get_origin(each) is tuple and not _has_any_length(each) for each in others)
    if len(known) < len(others) or has_pair:
        return None

    def check(value: Any) -> Fault | None:
        if value is None and len(others) < len(annotations):
            return None
        faults = [check(value) for check in known]
        if any(fault is None for fault in faults):
            return None
        deep = [fault for fault in faults if fault and fault.path]
        expected = " or ".join(dict.fromkeys(fault.expected for fault in faults if fault))
        advice = next((fault.advice for fault in faults if fault and fault.advice), "")
        return deep[0] if deep else Fault("", expected, value, advice)

    return check


def _array(annotation: Any) -> Check | None:
    """The check of a type of jaxtyping: an array of such a dtype, with as many axes."""
    if annotation.array_type not in (jax.Array, np.ndarray):
        return None  # embeddings, which the model checks, as they may be a prompt
    axes, dtypes = annotation.dim_str.split(), annotation.dtypes
    fewest = sum(not axis.startswith(("*", "...")) for axis in axes)
    most = fewest if fewest == len(axes) else math.inf
    names = dtypes if isinstance(dtypes, tuple) else ()
    numbers_of = "floats" if "float32" in names else "integers" if "int32" in names else "numbers"
    of_shape = f" of shape ({', '.join(axes)}{',' * (len(axes) == 1)})" if axes else ", of no axes"

    def accepts(value: Any) -> bool:
        is_traced = isinstance(value, jax.core.Tracer) and annotation.array_type is np.ndarray
        if is_traced or not (hasattr(value, "shape") and hasattr(value, "dtype")):
            return False
        has_kind = str(value.dtype) in names if names else getattr(value.dtype, "kind", "") not in "OUSMm"
        return has_kind and fewest <= len(value.shape) <= most

    return accepting(f"an array of {numbers_of}{of_shape}", accepts)


def _has_any_length(annotation: Any) -> bool:
    return get_args(annotation)[1:] in ((), (...,))


def _fixed_tuple(entries: tuple[Any, ...]) -> Check:
    checks = [check_of(entry) for entry in entries]
    expected = f"a tuple of {len(entries)}"

    def check(value: Any) -> Fault | None:
        if not isinstance(value, tuple | list) or len(value) != len(entries):
            return Fault("", expected, value)
        for index, (of_entry, entry) in enumerate(zip(checks, value, strict=True)):
            fault = of_entry(entry) if of_entry else None
            if fault is not None:
                return fault._replace(path=f"[{index}]{fault.path}")
        return None

    return check


def _sequence(kind: type, entries: tuple[Any, ...]) -> Check:
    """The check of a list, or of a tuple of any length; an array of integers serves as a list of them."""
    of_entry = check_of(entries[0]) if entries else None
    expected = "a tuple" if kind is tuple else "a list"

    def check(value: Any) -> Fault | None:
        if isinstance(value, str | bytes | collections.abc.Mapping) or not _has_length(value):
            is_one = value is not None and (of_entry is None or of_entry(value) is None)
            return Fault("", expected, value, "Put it in a list." if is_one and kind is not tuple else "")
        for index, entry in enumerate(_entries(value) if of_entry else ()):
            fault = of_entry(entry) if of_entry else None
            if fault is not None and hasattr(value, "dtype"):
                return Fault("", f"an array with {fault.expected} in each place", value)
            if fault is not None:
                return fault._replace(path=f"[{index}]{fault.path}")
        return None

    return check


def _entries(value: Any) -> Any:
    """The entries of a list to check: of an array the first one, which the others are like."""
    if isinstance(value, jax.core.Tracer):
        return ()
    return np.asarray(value[:1]).tolist() if hasattr(value, "dtype") else value


def _mapping(entries: tuple[Any, ...]) -> Check:
    of_entry = check_of(entries[1]) if entries else None

    def check(value: Any) -> Fault | None:
        if not isinstance(value, collections.abc.Mapping):
            return Fault("", "a dict", value)
        for key, entry in value.items():
            fault = of_entry(entry) if of_entry else None
            if fault is not None:
                return fault._replace(path=f"[{quoted(key, 40)}]{fault.path}")
        return None

    return check


def _has_length(value: Any) -> bool:
    if hasattr(value, "shape"):
        return len(value.shape) > 0
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _is_scalar(value: Any, kinds: str) -> bool:
    """Whether `value` is an array of no axes, which may be traced, of a dtype of these kinds."""
    return getattr(value, "shape", None) == () and getattr(getattr(value, "dtype", None), "kind", "-") in kinds


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    int: ("an integer", lambda value: is_integer(value) or _is_scalar(value, "iu")),
    float: ("a number", lambda value: _is_real(value) or _is_scalar(value, "iufV")),
    str: ("a text", lambda value: isinstance(value, str)),
    type(None): ("None", lambda value: value is None),
    os.PathLike: ("a path", lambda value: isinstance(value, os.PathLike)),
    collections.abc.Callable: ("a function", callable),
}
"""The plain types of Python: what is expected, and whether a value is one."""

Number = Annotated[int | float | np.number | jax.Array, accepting(*_PLAIN[float])]
"""A number of Python, NumPy or JAX that may be traced, as a strength that something is differentiated by."""
