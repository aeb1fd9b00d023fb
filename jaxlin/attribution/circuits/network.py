"""The network behind a circuit, component by component: its largest paths, what some of its edges carry, and where.

A `Circuit` has numbers. To follow what flows further than along one edge takes the vectors that are written and read,
which are computed again when they are asked for.
"""

import functools
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlin.attribution.circuits.expansion import expand, has_experts, slots, stream_factors, value_layers
from jaxlin.attribution.circuits.flow import flow
from jaxlin.attribution.circuits.places import EMBED, Component, component_numbers, orders, part_numbers, places
from jaxlin.attribution.circuits.single_reads import (
    HeadLayers,
    at_tokens,
    head_by_position,
    read_head,
    read_part,
    read_per_layer,
)
from jaxlin.attribution.circuits.stream_paths import (
    carried_to_end,
    gradients_at_places,
    place_count,
    read_alone,
    taken,
)
from jaxlin.linearize.frozen import FrozenFactors, freeze
from jaxlin.linearize.targets import ResolvedTarget
from jaxlin.nn.biases import has_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.prompt import Embeddings


@dataclass(frozen=True)
class Path:
    """A path from a token, or from biases, to the logit.

    Attributes:
        components: the names of the components that it passes, in order.
        position: the position of the token that it starts from; None if it starts from biases.
        effect: the contribution to the value of what goes along this path alone.
    """

    components: tuple[str, ...]
    position: int | None
    effect: float


class TokenFlows(NamedTuple):
    """What flows through the components at each token, along some edges alone.

    Attributes:
        entering: what each component reads at each token, ``[c, t]``.
        embedded: the part of it that comes from the embeddings, ``[c, t]``.
        leaving: what each writes at each token, ``[c, t]``.
        outputs: what each writes at the token of the largest flow, in the stream after the last block, ``[c, d]``.
    """

    entering: Float[np.ndarray, "c t"]
    embedded: Float[np.ndarray, "c t"]
    leaving: Float[np.ndarray, "c t"]
    outputs: Float[np.ndarray, "c d"]


class _Vectors(NamedTuple):
    """What the steps of a network need; places are those of `jaxlin.attribution.circuits.stream_paths`.

    Attributes:
        frozen: the frozen factors.
        routes: the experts of each token; None without any.
        writes: what each component writes, ``[c, t, d]``.
        read: how all components that read at a place do, ``[r, t, d]``; how the target reads at the last one.
    """

    frozen: FrozenFactors
    routes: Any
    writes: Float[Array, "c t d"]
    read: Float[Array, "r t d"]


@dataclass(frozen=True, eq=False)
class Network:
    """The flow network of one prediction.

    Attributes:
        model: the decoder.
        x: the input embeddings.
        position: the position of the logit.
        target: what is read there.
        rule: the freeze rule.
        components: the components, in the order of the circuit's axes.
        rows: the number of each among all places that a component may have.
    """

    model: Decoder
    x: Any
    position: int
    target: ResolvedTarget
    rule: Rule
    components: tuple[Component, ...]
    rows: tuple[int, ...]

    def paths(self, k: int, steps: int) -> list[Path]:
        """The `k` largest of the paths that are reached from the logit by following the largest flow first.

        Args:
            k: how many paths to return, the largest first.
            steps: how many flows to follow at most.
        """
        ends: list[Path] = []
        counter = itertools.count()  # of equal flows the first is followed
        queue: list[tuple[float, int, int, tuple[str, ...], float, Any, int]] = []

        def branch(names: tuple[str, ...], read: Any, place: int, whole: float | None) -> None:
            """Queue the flows that go on through `names`, which read at a place, from all that is written before."""
            earlier = self._before(place)
            effects = self._taken(earlier, read, place).sum(axis=1)
            for i, effect in zip(earlier.tolist(), effects.tolist(), strict=True):
                names_on = self.components[i].name, *names
                heapq.heappush(queue, (-abs(effect), next(counter), i, names_on, effect, read, place))
            if whole is not None and has_biases(self.model):
                ends.append(Path(names, None, float(whole - effects.sum())))

        branch((), self._vectors.read[-1], self._last, None)
        while queue and steps:
            _, _, i, names, effect, read, place = heapq.heappop(queue)
            component = self.components[i]
            if component.name == EMBED:
                by_token = self._taken([i], read, place)[0]
                ends += [Path(names, t, float(part)) for t, part in enumerate(by_token) if part]
            elif not component.reads:
                ends.append(Path(names, None, effect))
            else:
                steps -= 1
                gradient = self._gradient(component, read_alone(self.model, read, place))
                branch(names, self._read(component, gradient), component.reads_at, effect)
        return sorted(ends, key=lambda path: -abs(path.effect))[:k]

    def carried(self, edges: Bool[np.ndarray, "c c"], direct: Bool[np.ndarray, " c"]) -> float:
        """What reaches the target along some edges alone, and from the biases within the components they lead to."""
        writes, total = self._vectors.writes, 0.0
        for a, gradient, read in self._swept(edges, direct):
            total += float(at_tokens(writes[a], gradient).sum())
            if read is not None:
                # What enters a component is all that it writes but for the biases within it.
                place = self.components[a].reads_at
                total -= float(self._taken(self._before(place), read, place).sum())
        return total

    def by_token(self, edges: Bool[np.ndarray, "c c"], direct: Bool[np.ndarray, " c"]) -> "TokenFlows":
        """What flows along some edges alone, at each token, and the output that it is written by."""
        writes = self._vectors.writes
        by_token = np.zeros(writes.shape[:2], writes.dtype)
        flows = TokenFlows(by_token, by_token.copy(), by_token.copy(), np.zeros_like(writes[:, 0]))
        for a, gradient, read in self._swept(edges, direct):
            component = self.components[a]
            flows.leaving[a] = np.einsum("td,td->t", writes[a], gradient)
            token = np.argmax(np.abs(flows.leaving[a]))
            flows.outputs[a] = carried_to_end(self.model, self._vectors.frozen, component.order, writes[a])[token]
            if read is not None:
                entering = self._taken(np.flatnonzero(edges[:, a]), read, component.reads_at)
                flows.entering[a] = entering.sum(axis=0)
                if self.components[0].name == EMBED and edges[0, a]:
                    flows.embedded[a] = entering[0]
        return flows

    def _swept(self, edges: Bool[np.ndarray, "c c"], direct: Bool[np.ndarray, " c"]) -> Iterator[tuple[int, Any, Any]]:
        """From the last component on, each that some edges leave, with its gradients along these edges alone.

        They are the gradient in what it writes and that in what it reads, which is None for what only writes.
        """
        vectors = self._vectors
        reads = jnp.zeros_like(vectors.writes)
        read_at = jnp.array([each.reads_at for each in self.components])
        for a in reversed(range(len(self.components))):
            if edges[a].any() or direct[a]:
                through = jnp.asarray(edges[a], reads.dtype)
                along = _gathered(reads, through, read_at, vectors.read[-1] * bool(direct[a]), len(vectors.read))
                gradient = self._gradient(self.components[a], along)
                read = self._read(self.components[a], gradient) if self.components[a].reads else None
                if read is not None:
                    reads = reads.at[a].set(read)
                yield a, gradient, read

    def edge_by_position(self, source: int, target: int | None) -> Float[np.ndarray, "t s"]:
        """The effect of an edge by the position where its target writes, and by that where it reads.

        Args:
            source: the number of the component that writes.
            target: that of the one that reads; None for the target of the circuit.
        """
        vectors = self._vectors
        if target is None:
            return np.diag(self._taken([source], vectors.read[-1], self._last)[0])
        component = self.components[target]
        gradient = self._gradient(component, vectors.read)
        if component.head is None:
            return np.diag(self._taken([source], self._read(component, gradient), component.reads_at)[0])
        head = self._head_at(component), component.head
        write, places = vectors.writes[source], (self.components[source].order, component.reads_at)
        return np.asarray(head_by_position(self.model, vectors.frozen, *head, gradient, write, places))

    @functools.cached_property
    def _vectors(self) -> _Vectors:
        vectors = _compute(self.model, self.x, self.position, self.target, self.rule)
        return vectors._replace(writes=vectors.writes[np.array(self.rows)])

    @property
    def _last(self) -> int:
        """The place of the target."""
        return place_count(self.model) - 1

    def _before(self, place: int) -> Int[np.ndarray, " n"]:
        """The components that write before a place."""
        return np.flatnonzero([component.order < place for component in self.components])

    def _taken(
        self, sources: Int[np.ndarray, " n"] | list[int], read: Float[Array, "t d"], place: int
    ) -> Float[np.ndarray, "n t"]:
        """What is read at a place of each of some components that write before it."""
        written_at = jnp.array([each.order for each in self.components])
        # Of all components, so that one program serves any number of them.
        every = taken(self.model, self._vectors.frozen, self._vectors.writes, written_at, read, place)
        return np.asarray(every)[sources]

    def _gradient(self, component: Component, reads: Float[Array, "r t d"]) -> Float[Array, "t d"]:
        """The gradient in what a component writes, from that in what is read at each place."""
        return gradients_at_places(self.model, self._vectors.frozen, reads)[component.order]

    def _read(self, component: Component, gradient: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The gradient in the stream that a component reads, through it alone, from that in what it writes."""
        index, vectors = self.model.layout.locate(component.layer), self._vectors
        if component.head is not None:
            return read_head(self.model, vectors.frozen, self._head_at(component), component.head, gradient)
        if component.per_layer:
            return read_per_layer(self.model, vectors.frozen, index, gradient)
        experts = self.model.config.num_experts if has_experts(self.model) else 0
        expert = experts if component.expert is None else component.expert
        return read_part(self.model, vectors.frozen, vectors.routes, index, expert, gradient)

    def _head_at(self, component: Component) -> HeadLayers:
        """Where a head is, and where it reads its values."""
        locate, values = self.model.layout.locate, int(value_layers(self.model)[component.layer])
        return HeadLayers(locate(component.layer), None if values == component.layer else locate(values))


@functools.partial(jax.jit, static_argnames="rule")
def _compute(
    model: Decoder, x: Float[Embeddings, "t d"], position: Any, target: ResolvedTarget, rule: Rule
) -> _Vectors:
    traced = flow(model, x, position, target, rule, False)
    writes, reads = expand(model, traced.layers)
    shape = places(model, traced)
    by_kind = jnp.split(reads, [shape.heads, shape.heads + slots(model)][: 1 + shape.per_layer], axis=1)
    read = jnp.zeros((place_count(model), *traced.embed.shape), traced.embed.dtype).at[-1].set(traced.direction)
    for kind, part in zip(("values", "mlp", "per_layer"), by_kind, strict=False):
        read = read.at[np.array([getattr(each, kind) for each in orders(model)])].add(jnp.sum(part, axis=1))
    embed = traced.embed * stream_factors(model)[0]
    writes = jnp.concatenate([embed[None], writes.reshape(-1, *embed.shape)])
    if has_experts(model):  # each token has other experts in the same places
        numbers, _ = component_numbers(shape, part_numbers(model, len(embed), traced.routes))
        rows = 1 + model.layout.depth * shape.writers
        by_component = jnp.zeros((rows, *embed.shape), embed.dtype)
        writes = by_component.at[numbers, jnp.arange(len(embed))[None]].add(writes, mode="drop")
    return _Vectors(freeze(model, x, rule=rule), traced.routes, writes, read)


@functools.partial(jax.jit, static_argnames="places")
def _gathered(
    reads: Float[Array, "c t d"],
    edges: Float[Array, " c"],
    read_at: Int[Array, " c"],
    end: Float[Array, "t d"],
    places: int,
) -> Float[Array, "r t d"]:
    """What is read at each place along some edges, with `end` at the last."""
    by_place = jnp.zeros((places, *end.shape), end.dtype).at[-1].set(end)
    return by_place.at[read_at].add(edges[:, None, None] * reads)
