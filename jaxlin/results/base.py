"""`Result`: the base of the results of all analyses."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from typing import Any, ClassVar, TypeVar

import jax
import jax.core
import numpy as np

from jaxlin import plots
from jaxlin.common.arrays import ShapesRepr
from jaxlin.common.errors import JaxlinError
from jaxlin.results import files, html, tables
from jaxlin.results.provenance import Provenance, note
from jaxlin.results.values import equal, is_array, plain

R = TypeVar("R", bound="Result")


class Result(ShapesRepr):
    """The base of a frozen dataclass of arrays and plain values that an analysis returns.

    A subclass says what the axes of its arrays are; comparison, tables, files, HTML and a plot follow from that.

    Attributes:
        AXES: the names of the axes of each array. Along ``position`` are the tokens of the prompt. An array with an
            axis ``feature`` holds vectors, which are in dictionaries and files and in no table.
        LABELS: for an axis whose entries are not counted from 0, the name of its column, and the field that has its
            values.
        COLUMNS: the name of the column of an array, if it is not that of the field.
        IDS: the arrays of token ids, which have a column ``word`` beside them.
        VALUE: the column of the main value, for the table of a result that this one is a part of.
        PROPERTIES: the properties of numbers that `to_dict` and HTML have besides the fields.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    LABELS: ClassVar[Mapping[str, tuple[str, str]]] = {}
    COLUMNS: ClassVar[Mapping[str, str]] = {}
    IDS: ClassVar[tuple[str, ...]] = ()
    VALUE: ClassVar[str] = ""
    PROPERTIES: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        files.CLASSES[cls.__name__] = cls

    @property
    def provenance(self) -> Provenance | None:
        """The checkpoint, prompt, settings and versions that this result is from; None if nothing is known.

        A transform of JAX drops it: see `jaxlin.results`.
        """
        return self.__dict__.get("_provenance")

    def with_prompt(self: R, tokenizer: Any, ids: Sequence[int]) -> R:
        """This result with the tokens of its prompt, where it does not know them, as after a transform.

        Args:
            tokenizer: the model's tokenizer.
            ids: the token ids of the prompt.
        """
        provenance = self.provenance or Provenance()
        labelled = _copied(self)
        note(labelled, replace(provenance, tokenizer=tokenizer, ids=tuple(map(int, ids))))
        return labelled

    def replaced(self: R, **changes: Any) -> R:
        """This result with some fields changed, and the same provenance."""
        instance: Any = self
        changed: Any = replace(instance, **changes)
        note(changed, self.provenance)
        return changed

    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the axes of each array of this result."""
        return self.AXES

    def __eq__(self, other: object) -> bool:
        """Whether the class and all fields are equal, arrays in every entry; the provenance is not compared."""
        if type(self) is not type(other):
            return NotImplemented
        instance: Any = self
        return all(equal(getattr(self, each.name), getattr(other, each.name)) for each in fields(instance))

    def __hash__(self) -> int:
        """A hash of the class and of the shapes of arrays: those of equal results are equal."""
        instance: Any = self
        return hash(
            (type(self).__name__, *(np.shape(v) for f in fields(instance) if is_array(v := getattr(self, f.name))))
        )

    def __getstate__(self) -> dict[str, Any]:
        """What `copy` and `pickle` take: the fields and the provenance."""
        instance: Any = self
        names = {each.name for each in fields(instance)} | {"_provenance"}
        return {name: value for name, value in self.__dict__.items() if name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values for JSON: nested lists, with None for numbers that are not finite.

        Where the provenance is known, it is under ``"provenance"``.
        """
        values = self.values()
        return values if self.provenance is None else {**values, "provenance": self.provenance.to_dict()}

    def values(self) -> dict[str, Any]:
        """`to_dict` without the provenance."""
        instance: Any = self
        values = {each.name: plain(getattr(self, each.name)) for each in fields(instance)}
        values.update({name: plain(getattr(self, name)) for name in self.PROPERTIES})
        return values

    def tables(self) -> list[dict[str, Any]]:
        """The tables of this result, each as columns of one length by name, those of the results in it too."""
        return tables.tables(self)

    def table(self) -> dict[str, Any]:
        """The columns of `to_pandas`, by name."""
        tables_here = self.tables()
        if len(tables_here) > 1:
            return tables.long(self)
        return tables_here[0] if tables_here else {key: [value] for key, value in tables.scalars(self).items()}

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` of tidy rows, one for each entry of the arrays, with the texts of tokens.

        Arrays of the same axes are columns of one table. A result whose arrays have different axes has a column
        ``part`` with the name of the array, and a column ``value``. `DataFrame.attrs` has the single numbers, and the
        provenance. Vectors are left out.

        Raises:
            JaxlinError: pandas is not installed: ``pip install "jaxlin[pandas]"``.
        """
        notes = tables.scalars(self)
        if self.provenance is not None:
            notes["provenance"] = self.provenance.to_dict()
        return tables.to_pandas(self.table(), notes)

    def save(self, path: str | PathLike[str]) -> None:
        """Write this result and its provenance to a new ``.safetensors`` file, which `jaxlin.results.load` reads.

        Raises:
            JaxlinError: another ending, a file that exists, one that cannot be written, or a result of traced arrays.
        """
        self._check_values("Save")
        ids = [getattr(part, name) for part in _parts(self) for name in part.IDS]
        used = np.unique(np.concatenate([np.zeros(0, int), *(np.asarray(each).reshape(-1) for each in ids)]))
        files.write(self, path, used.tolist())

    @classmethod
    def load(cls: type[R], path: str | PathLike[str]) -> R:
        """The result of this class in a file that `save` wrote.

        Raises:
            CheckpointError: no such file, or one without a result.
            JaxlinError: a result of another class.
        """
        result = files.load(path)
        if not isinstance(result, cls):
            raise JaxlinError(
                f"{path}: expected a result of class {cls.__name__}; found one of {type(result).__name__}. "
                "jaxlin.results.load reads any."
            )
        return result

    def plot(self, ax: Any = None) -> Any:
        """Draw this result with matplotlib, and return the axes.

        Args:
            ax: the axes to draw in, by default those of a new figure.

        Raises:
            JaxlinError: matplotlib is not installed (``pip install "jaxlin[plot]"``), or this is a batch of results,
                or one of traced arrays.
        """
        self._check_values("Plot")
        axes = plots.axes_or_new(ax)
        self._draw(axes)
        return axes

    def _draw(self, ax: Any) -> None:
        """Draw on matplotlib's `ax`: by default a heat map or bars of the first array."""
        for names, arrays in tables.groups(self).items():
            name, array = next(iter(arrays.items()))
            if array.ndim == 2:
                plots.heat_map(
                    ax, array, self._labels(names[0], array.shape[0]), self._labels(names[1], array.shape[1])
                )
                ax.set(ylabel=names[0], xlabel=names[1], title=name.replace("_", " "))
                return
            if array.ndim == 1:
                plots.bars(ax, array, self._labels(names[0], len(array)))
                ax.set(xlabel=name.replace("_", " "))
                return
        values = {key: value for key, value in tables.scalars(self).items() if not isinstance(value, str | bool)}
        plots.bars(ax, np.array(list(values.values()), float), [key.replace("_", " ") for key in values])

    def _labels(self, axis: str, count: int) -> list[str]:
        """The labels of an axis: names of tokens where they are known, or numbers."""
        name, label = self.LABELS.get(axis, (axis, None))
        numbers = list(range(count)) if label is None else np.asarray(getattr(self, label)).tolist()
        names = self.token_names
        if name != "position" or names is None:
            return [f"token {number}" if name == "position" else str(number) for number in numbers]
        return [names[number] if number < len(names) else f"token {number}" for number in numbers]

    @property
    def token_names(self) -> list[str] | None:
        """The names of the prompt's tokens, see `jaxlin.common.token_names`; None if they are not known."""
        return None if self.provenance is None else self.provenance.names

    def _word(self, token: int) -> str:
        """The text of a token id as people read it."""
        return f"id {int(token)}" if self.provenance is None else self.provenance.word(token)

    def _check_values(self, verb: str) -> None:
        values = [[getattr(part, each.name) for each in fields(part)] for part in _parts(self)]
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
            raise JaxlinError(f"{verb}: expected a result with values; found one of traced arrays, within a transform.")
        is_batch = any("prompt" in axes for part in _parts(self) for axes in tables.groups(part))
        if is_batch and verb == "Plot":
            raise JaxlinError(
                "Plot: expected one result; found a batch, as from jax.vmap. Take one out of it: "
                "jax.tree.map(lambda a: a[i], batch)."
            )

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        return html.page(self)


def _parts(result: Any) -> list[Any]:
    """`result`, and the results that are parts of it."""
    if isinstance(result, list | tuple):
        return [part for each in result for part in _parts(each)]
    if not isinstance(result, Result):
        return []
    instance: Any = result
    return [result, *(part for each in fields(instance) for part in _parts(getattr(result, each.name)))]


def _copied(result: Any) -> Any:
    """A copy of `result`, in which the results in it are copies too."""
    if isinstance(result, list | tuple):
        return type(result)(_copied(each) for each in result)
    if not isinstance(result, Result):
        return result
    copied, instance = copy.copy(result), result
    for each in fields(instance):  # type: ignore[arg-type]
        copied.__dict__[each.name] = _copied(getattr(result, each.name))
    return copied
