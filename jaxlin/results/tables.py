"""Results as tidy rows: one row for each entry of the arrays, with the layer, the position and the token as columns."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import numpy as np

from jaxlin.common.errors import JaxlinError
from jaxlin.results.values import is_array

Table = dict[str, Any]
"""Columns of one length, by name."""

FEATURE = "feature"
"""The axis of features of a vector: arrays that have it are vectors, which are no table."""


def groups(result: Any) -> dict[tuple[str, ...], dict[str, np.ndarray]]:
    """The arrays of `result` by their axes, without vectors and without those that label an axis of others."""
    labels = {name for _, name in result.LABELS.values()}
    by_axes: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for name, axes in result.axes().items():
        value = getattr(result, name)
        if value is None or name in labels or FEATURE in axes:
            continue
        array = np.asarray(value)
        batch = ("prompt",) * (array.ndim - len(axes))
        by_axes.setdefault((*batch, *axes), {})[name] = array
    return by_axes


def columns(result: Any, axes: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> Table:
    """The columns of arrays with these axes: where each entry is, and its value in each array."""
    shape = next(iter(arrays.values())).shape
    table: Table = {}
    indices = np.indices(shape).reshape(len(shape), -1) if shape else np.zeros((0, 1), int)
    for axis, index in zip(axes, indices, strict=True):
        name, label = result.LABELS.get(axis, (axis, None))
        values = np.arange(shape[axes.index(axis)]) if label is None else np.asarray(getattr(result, label))
        table[name] = values[indices[0], index] if values.ndim == 2 else values[index]
        if name == "position" and (texts := token_texts(result)) is not None:
            table["token"] = [texts[t] if t < len(texts) else None for t in table[name].tolist()]
    for name, array in arrays.items():
        table[result.COLUMNS.get(name, name)] = array.reshape(-1)
        if name in result.IDS:
            ids = array.reshape(-1).tolist()
            known = {each: None if result.provenance is None else result.provenance.text(each) for each in set(ids)}
            table["word"] = [known[each] for each in ids]
    return table


def token_texts(result: Any) -> list[str] | None:
    """The texts of the tokens of the prompt, if they are known."""
    return None if result.provenance is None else result.provenance.tokens


def scalars(result: Any) -> dict[str, Any]:
    """The numbers and texts of `result`: those of its fields that are no arrays, and its properties."""
    values = {each.name: getattr(result, each.name) for each in fields(result)}
    values.update({name: getattr(result, name) for name in result.PROPERTIES})
    values = {
        key: np.asarray(value).item() if is_array(value) and not np.ndim(value) else value
        for key, value in values.items()
    }
    return {key: value for key, value in values.items() if isinstance(value, str | bool | int | float)}


def tables(result: Any) -> list[Table]:
    """The tables of `result`, those of the results in it after its own."""
    own = [columns(result, axes, arrays) for axes, arrays in groups(result).items()]
    for each in fields(result):
        value = getattr(result, each.name)
        parts = value if isinstance(value, list | tuple) else [value]
        for part in parts:
            if hasattr(type(part), "provenance"):
                named = {"part": each.name} if len(parts) == 1 else {"part": f"{each.name} {parts.index(part)}"}
                own += [filled(named, table) for table in part.tables()]
    return own


def long(result: Any) -> Table:
    """One table of all entries: the name of the array as `part`, where the entry is, and its `value`."""
    parts: list[Table] = []
    for axes, arrays in groups(result).items():
        for name, array in arrays.items():
            table = columns(result, axes, {name: array})
            table["value"] = table.pop(result.COLUMNS.get(name, name))
            parts.append(filled({"part": name}, table))
    for name, value in scalars(result).items():
        if not isinstance(value, str | bool) and name not in result.PROPERTIES:
            parts.append({"part": [name], "value": [value]})
    for each in fields(result):
        part = getattr(result, each.name)
        if hasattr(type(part), "provenance"):
            for table in part.tables():
                if part.VALUE in table:
                    table = {"value" if key == part.VALUE else key: column for key, column in table.items()}
                    parts.append(filled({"part": each.name}, table))
    return stacked(parts)


def filled(constants: Mapping[str, Any], table: Table) -> Table:
    """`table` after columns of one value each."""
    length = len(next(iter(table.values()), ()))
    return {**{name: [value] * length for name, value in constants.items()}, **table}


def stacked(tables: Sequence[Table]) -> Table:
    """The rows of several tables under each other; None where a table lacks a column."""
    names = [name for name in dict.fromkeys(name for table in tables for name in table) if name != "value"]
    names += ["value"] if any("value" in table for table in tables) else []
    rows: Table = {name: [] for name in names}
    for table in tables:
        length = len(next(iter(table.values()), ()))
        for name in names:
            column = table.get(name, [None] * length)
            rows[name] += column.tolist() if isinstance(column, np.ndarray) else list(column)
    return rows


def to_pandas(table: Table, notes: Mapping[str, Any]) -> Any:
    """A `pandas.DataFrame` of these columns, with `notes` as its `attrs`.

    Raises:
        JaxlinError: pandas is not installed.
    """
    if find_spec("pandas") is None:
        raise JaxlinError('Table: expected pandas; found none. Install it: pip install "jaxlin[pandas]".')
    import pandas

    frame = pandas.DataFrame(table)
    for name in frame.columns:
        # A column of integers with gaps would become one of floats.
        if frame[name].dtype.kind == "f" and all(value is None or isinstance(value, int) for value in table[name]):
            frame[name] = frame[name].astype("Int64")
    frame.attrs.update(notes)
    return frame
