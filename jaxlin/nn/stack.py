r"""Stacks: the values that belong to each layer of a model, for one compiled loop over many layers.

Layers that are alike have their parameters, frozen factors and caches stacked on a leading axis, and one `jax.lax.scan`
runs all of them. In many models not all layers are alike: every fourth has another kind of attention, or the first have
no experts. Their arrays differ in shape, so that they cannot share a leading axis. But the kinds repeat: a `Layout`
divides the layers into segments, in each of which a period of kinds is repeated. One scan runs a segment, with a period
in its body, and a `Stack` has an array for each place in the period, stacked over the repeats.

For layers of kinds ``GGGAGGGA`` that is the segment ``(GGGA, 2)``; for ``DMMMM`` they are ``(D, 1)`` and ``(M, 4)``.

Values that are alike in all layers, such as the residual streams, are plain arrays ``[layers, ...]`` in every model.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlin.common.arrays import Leaf
from jaxlin.quantized import mixed


@dataclass(frozen=True)
class Segment:
    """Some layers, one after the other, in which a period of kinds repeats.

    Attributes:
        start: the first layer.
        period: the number of layers in a period.
        repeats: how often the period occurs.
    """

    start: int
    period: int
    repeats: int

    @property
    def stop(self) -> int:
        """The layer after the last."""
        return self.start + self.period * self.repeats

    def layers(self, place: int) -> range:
        """The layers at a place in the period."""
        return range(self.start + place, self.stop, self.period)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerIndex:
    """Where a layer is. Under `jax.jit` only the place is static, so that layers alike share a program.

    Attributes:
        segment: the segment.
        place: the place in its period.
        repeat: which repeat of the period.
        layer: the layer, counted over the model.
    """

    segment: int = field(metadata={"static": True})
    place: int = field(metadata={"static": True})
    repeat: Leaf
    layer: Leaf


@dataclass(frozen=True)
class Run:
    """A part of a segment: some places of its period, in some of its repeats."""

    segment: int
    places: range
    repeats: range


@dataclass(frozen=True)
class Layout:
    """The segments of a model's layers."""

    segments: tuple[Segment, ...]

    @classmethod
    @functools.cache
    def of(cls, kinds: tuple[Hashable, ...]) -> "Layout":
        """The layout of layers of these kinds: from each layer on, the repeats that cover most; of equals the shortest.

        One compiled body a segment, with one block for each place in the period: few segments, short periods.
        """
        segments, start = [], 0
        while start < len(kinds):
            candidates = []
            for period in range(1, (len(kinds) - start) // 2 + 1):
                repeats = 1
                while kinds[start : start + period] == kinds[start + repeats * period : start + (repeats + 1) * period]:
                    repeats += 1
                if repeats > 1:
                    candidates.append(Segment(start, period, repeats))
            segment = max(candidates, key=lambda each: (each.stop, -each.period), default=Segment(start, 1, 1))
            segments.append(segment)
            start = segment.stop
        return cls(tuple(segments))

    @property
    def depth(self) -> int:
        """The number of layers."""
        return self.segments[-1].stop - self.segments[0].start

    @property
    def is_uniform(self) -> bool:
        """Whether all layers are alike, so that a plain array has all of them."""
        return len(self.segments) == 1 and self.segments[0].period == 1

    def locate(self, layer: int) -> LayerIndex:
        """Where a layer is."""
        for index, segment in enumerate(self.segments):
            if segment.start <= layer < segment.stop:
                repeat, place = divmod(layer - segment.start, segment.period)
                return LayerIndex(index, place, repeat, layer)
        raise IndexError(f"layer {layer} of layers {self.segments[0].start} to {self.segments[-1].stop - 1}")

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The layers from `start` to before `stop`, in order; a period that either end cuts is a run of its own."""
        for index, segment in enumerate(self.segments):
            first, last = max(start, segment.start) - segment.start, min(stop, segment.stop) - segment.start
            while first < last:
                repeat, place = divmod(first, segment.period)
                whole = last // segment.period
                if place == 0 and whole > repeat:
                    yield Run(index, range(segment.period), range(repeat, whole))
                    first = whole * segment.period
                else:
                    end = min(segment.period, last - repeat * segment.period)
                    yield Run(index, range(place, end), range(repeat, repeat + 1))
                    first = repeat * segment.period + end

    def stacks(self, tree: Any, segment: int, place: int) -> Any:
        """The values at one place of a period in a pytree of stacks, stacked over the repeats of the segment."""
        layers = self.segments[segment].layers(place)
        if self.is_uniform:
            return tree
        rows = slice(layers.start, layers.stop, layers.step)
        return jax.tree.map(
            lambda node: node.parts[segment][place] if is_stack(node) else node[rows], tree, is_leaf=is_stack
        )

    def between(self, start: int, stop: int) -> "Layout":
        """The layout of the layers from `start` to before `stop`, whose segments are the `runs`."""
        segments = []
        for run in self.runs(start, stop):
            segment = self.segments[run.segment]
            first = segment.start + run.repeats.start * segment.period + run.places.start
            segments.append(Segment(first, len(run.places), len(run.repeats)))
        return Layout(tuple(segments))

    def joined(self, parts: Sequence[Sequence[Any]]) -> Any:
        """The values of all layers, from those at each place of each segment, stacked over its repeats.

        What has the same shapes in all layers becomes plain arrays ``[layers, ...]``, in the order of the layers; what
        has not becomes a `Stack`. The members of a tuple are treated one by one.
        """
        first = parts[0][0]
        if self.is_uniform:
            return first
        if type(first) is tuple:
            members = range(len(first))
            return tuple(self.joined([[place[i] for place in segment] for segment in parts]) for i in members)
        if len({_signature(place) for segment in parts for place in segment}) > 1:
            return Stack(tuple(map(tuple, parts)), self)

        def in_order(*places: Array) -> Array:
            rows, remaining = [], iter(places)
            for segment in parts:
                together = jnp.stack([next(remaining) for _ in segment], axis=1)
                rows.append(together.reshape(-1, *together.shape[2:]))
            return jnp.concatenate(rows)

        return jax.tree.map(in_order, *(place for segment in parts for place in segment))

    def map(self, function: Callable[..., Any], *trees: Any) -> Any:
        """The values of all layers, `joined`, from ``function(*trees)`` at each place, with the trees' values there.

        The function takes and returns values that are stacked over the repeats of a segment.
        """
        return self.joined(
            [
                [function(*(self.stacks(tree, index, place) for tree in trees)) for place in range(segment.period)]
                for index, segment in enumerate(self.segments)
            ]
        )

    def stacked(self, rows: Sequence[Any]) -> Any:
        """The values of all layers, from those of each: a pytree whose shapes may differ between unlike layers."""
        start = self.segments[0].start
        parts = [
            [
                jax.tree.map(
                    lambda *layers: jnp.stack(layers), *(rows[layer - start] for layer in segment.layers(place))
                )
                for place in range(segment.period)
            ]
            for segment in self.segments
        ]
        return self.joined(parts)


@dataclass(frozen=True)
class PlaceKey:
    """The key of a part of a `Stack` in the path of a leaf.

    Attributes:
        layers: the layers whose values the part has, on its leading axis.
    """

    layers: range

    def __str__(self) -> str:
        return f"[{self.layers.start}:{self.layers.stop}:{self.layers.step}]"


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Stack:
    """The values of layers that are not all alike: a pytree, each leaf of which has a leading axis of some layers.

    Attributes:
        parts: the values at each place of each segment, stacked over the repeats of the segment.
        layout: the segments.
    """

    parts: tuple[tuple[Any, ...], ...]
    layout: Layout

    def tree_flatten_with_keys(self) -> tuple[list[tuple[PlaceKey, Any]], Layout]:
        """The parts, each with the layers that it belongs to."""
        return [
            (PlaceKey(segment.layers(place)), part)
            for segment, places in zip(self.layout.segments, self.parts, strict=True)
            for place, part in enumerate(places)
        ], self.layout

    @classmethod
    def tree_unflatten(cls, layout: Layout, children: Sequence[Any]) -> "Stack":
        """The stack of these parts."""
        remaining = iter(children)
        return cls(tuple(tuple(next(remaining) for _ in range(s.period)) for s in layout.segments), layout)

    def __getitem__(self, layer: int) -> Any:
        """The values of one layer."""
        return layer_of(self, layer)


def layers_at(path: tuple[Any, ...], depth: int) -> range:
    """The layers on the leading axis of the leaf at `path`, in a pytree of stacks over `depth` layers."""
    return next((key.layers for key in path if isinstance(key, PlaceKey)), range(depth))


def layer_of(tree: Any, layer: Any) -> Any:
    """The values of one layer in a pytree of stacks.

    Args:
        tree: arrays ``[layers, ...]``, mixed stacks and `Stack`s.
        layer: its number, which may be traced where no layers are unlike, or a `LayerIndex`.
    """
    number = layer.layer if isinstance(layer, LayerIndex) else layer
    if is_stack(tree):
        index = layer if isinstance(layer, LayerIndex) else tree.layout.locate(layer)
        return mixed.layer_of(tree.parts[index.segment][index.place], index.repeat)
    if not any(map(is_stack, jax.tree.leaves(tree, is_leaf=is_stack))):
        return mixed.layer_of(tree, number)
    children, structure = jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)
    return structure.unflatten([layer_of(child, layer) for child in children])


def padded(values: Any) -> Any:
    """Arrays of each layer, ``[layers, n, ...]``, where n may differ: NaN where a layer has fewer than the most."""
    if not is_stack(values):
        return values
    parts = [part for places in values.parts for part in places]
    most = max(part.shape[1] for part in parts)

    def to_most(part: Array) -> Array:
        missing = [(0, 0), (0, most - part.shape[1]), *[(0, 0)] * (part.ndim - 2)]
        return jnp.pad(part, missing, constant_values=np.nan)

    return values.layout.map(to_most, values)


def is_stack(node: Any) -> bool:
    """Whether `node` is a `Stack`."""
    return isinstance(node, Stack)


def _signature(tree: Any) -> tuple[Any, ...]:
    """The structure of a pytree, and the shapes without the leading axis and the dtypes of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, *((tuple(leaf.shape[1:]), np.dtype(leaf.dtype)) for leaf in leaves)
