"""Tensors that a checkpoint has cut elsewhere than between the parameters in them, read as the one that was cut."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxlin.loading.stored import TensorSource
from jaxlin.porting.port import Port
from jaxlin.quantized import PackedMatrix


class JoinedTensors:
    """A checkpoint in which some tensors are one: the rows of the first, then those of the next.

    Args:
        tensors: the checkpoint.
        parts: the names of the parts of each tensor.
    """

    def __init__(self, tensors: TensorSource, parts: Mapping[str, Collection[str]]) -> None:
        self._tensors, self._parts = tensors, parts
        self._names = set(tensors.names()).difference(*parts.values()).union(parts)

    def names(self) -> set[str]:
        """The names of all tensors; parts have none of their own."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        shapes = [self._tensors.shape(part) for part in self._parts.get(name, (name,))]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if name in self._parts else shapes[0]

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is read as a packed matrix; none that is joined is."""
        return name not in self._parts and self._tensors.is_packed(name)

    def read(self, name: str) -> np.ndarray | PackedMatrix:
        """The values of a tensor, or its packed matrix."""
        return self.read_slice(name, ()) if name in self._parts else self._tensors.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray | PackedMatrix:
        """Some rows of a tensor."""
        if name in self._parts:
            return self.read_slice(name, (slice(start, stop),))
        return self._tensors.read_rows(name, start, stop)

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor that is not packed; of joined ones, which are small, all rows are read."""
        if name not in self._parts:
            return self._tensors.read_slice(name, index)
        return np.concatenate([self._tensors.read_slice(part, ()) for part in self._parts[name]])[index]

    def read_expert(self, name: str, expert: int) -> np.ndarray | PackedMatrix:
        """The values or the packed matrix of one expert of a tensor that has those of all."""
        return self._tensors.read_expert(name, expert)


def joined(tensors: TensorSource, port: Port, config: Any) -> TensorSource:
    """`tensors`, with those joined that `Port.joined` names and that have other rows than their parameters.

    Args:
        tensors: the checkpoint.
        port: its port, with the checkpoint's own names, see `Port.as_named`.
        config: of the decoder.
    """
    names, layers, cut = set(tensors.names()), port.bodies[0] + port.layers, {}
    for whole, rows in port.joined(config).items():
        first = f".{next(iter(rows))}"
        for prefix in (name.removesuffix(first) for name in names if name.startswith(layers) and name.endswith(first)):
            parts = {f"{prefix}.{part}": count for part, count in rows.items()}
            if parts.keys() <= names and not any(map(tensors.is_packed, parts)):
                shapes = [tensors.shape(part) for part in parts]
                counts = [shape[0] if shape else 0 for shape in shapes]
                fit = sum(counts) == sum(parts.values()) and len({shape[1:] for shape in shapes}) == 1
                if fit and counts != [*parts.values()]:
                    cut[f"{prefix}.{whole}"] = tuple(parts)
    return JoinedTensors(tensors, cut) if cut else tensors
