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
from jaxtyping import Array, Bool, Float

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
from jaxlin.linearize.frozen import FrozenFactors, freeze
from jaxlin.linearize.targets import ResolvedTarget
from jaxlin.nn.biases import has_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.layers import HIGHEST
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
    """What the steps of a network need; vectors are as they are in the stream after the last block.

    Attributes:
        frozen: the frozen factors.
        routes: the experts of each token; None without any.
        writes: what each component writes, ``[c, t, d]``.
        read: how the heads of each layer read together, how its MLP does, and what adds per-layer embeddings if there
            are any, ``[l, r, t, d]``.
        direction: the gradient of the target in the stream after the last block, ``[t, d]``.
    """

    frozen: FrozenFactors
    routes: Any
    writes: Float[Array, "c t d"]
    read: Float[Array, "l r t d"]
    direction: Float[Array, "t d"]


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
        queue: list[tuple[float, int, int, tuple[str, ...], float, Any]] = []

        def branch(names: tuple[str, ...], gradient: Any, order: int, whole: float | None) -> None:
            """Queue the flows that go on through `names`, from all that is written before the place `order`."""
            effects = np.asarray(_effects(self._vectors.writes, gradient))
            earlier = [i for i, component in enumerate(self.components) if component.order < order]
            for i in earlier:
                flow = (self.components[i].name, *names), float(effects[i]), gradient
                heapq.heappush(queue, (-abs(flow[1]), next(counter), i, *flow))
            if whole is not None and has_biases(self.model):
                ends.append(Path(names, None, float(whole - effects[earlier].sum())))

        branch((), self._vectors.direction, 2**31, None)
        while queue and steps:
            _, _, i, names, effect, gradient = heapq.heappop(queue)
            component = self.components[i]
            if component.name == EMBED:
                by_token = np.asarray(at_tokens(self._vectors.writes[i], gradient))
                ends += [Path(names, t, float(part)) for t, part in enumerate(by_token) if part]
            elif not component.reads:
                ends.append(Path(names, None, effect))
            else:
                steps -= 1
                branch(names, self._read(component, gradient), component.reads_at, effect)
        return sorted(ends, key=lambda path: -abs(path.effect))[:k]

    def carried(self, edges: Bool[np.ndarray, "c c"], direct: Bool[np.ndarray, " c"]) -> float:
        """What reaches the target along some edges alone, and from the biases within the components they lead to."""
        writes, total = self._vectors.writes, 0.0
        for a, gradient, read in self._swept(edges, direct):
            total += float(_effects(writes[a][None], gradient)[0])
            if read is not None:
                earlier = [each.order < self.components[a].reads_at for each in self.components]
                # What enters a component is all that it writes but for the biases within it.
                total -= float(np.asarray(_effects(writes, read))[np.array(earlier)].sum())
        return total

    def by_token(self, edges: Bool[np.ndarray, "c c"], direct: Bool[np.ndarray, " c"]) -> "TokenFlows":
        """What flows along some edges alone, at each token, and the output that it is written by."""
        writes = self._vectors.writes
        by_token = np.zeros(writes.shape[:2], writes.dtype)
        flows = TokenFlows(by_token, by_token.copy(), by_token.copy(), np.zeros_like(writes[:, 0]))
        for a, gradient, read in self._swept(edges, direct):
            flows.leaving[a] = np.einsum("td,td->t", writes[a], gradient)
            flows.outputs[a] = writes[a, np.argmax(np.abs(flows.leaving[a]))]
            if read is not None:
                entering = np.einsum("ctd,td->ct", writes[np.flatnonzero(edges[:, a])], read)
                flows.entering[a] = entering.sum(axis=0)
                if self.components[0].name == EMBED and edges[0, a]:
                    flows.embedded[a] = entering[0]
        return flows

    def _swept(self, edges: Bool[np.ndarray, "c c"], direct: Bool[np.ndarray, " c"]) -> Iterator[tuple[int, Any, Any]]:
        """From the last component on, each that some edges leave, with its gradients along these edges alone.

        They are the gradient in what it writes and that in what it reads, which is None for what only writes.
        """
        writes, end = self._vectors.writes, self._vectors.direction
        reads = jnp.zeros_like(writes)
        for a in reversed(range(len(self.components))):
            if edges[a].any() or direct[a]:
                gradient = _gathered(reads, jnp.asarray(edges[a], writes.dtype), end * bool(direct[a]))
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
        write = vectors.writes[source]
        if target is None:
            return np.diag(np.asarray(at_tokens(write, vectors.direction)))
        component, readers = self.components[target], vectors.read.shape[1]
        read_at = [(each.values, each.mlp, each.per_layer)[:readers] for each in orders(self.model)]
        later = jnp.asarray(np.ravel(read_at) > component.order, write.dtype)
        gradient = _gathered(vectors.read.reshape(-1, *write.shape), later, vectors.direction)
        if component.head is None:
            return np.diag(np.asarray(at_tokens(write, self._read(component, gradient))))
        return np.asarray(
            head_by_position(self.model, vectors.frozen, self._head_at(component), component.head, gradient, write)
        )

    @functools.cached_property
    def _vectors(self) -> _Vectors:
        vectors = _compute(self.model, self.x, self.position, self.target, self.rule)
        return vectors._replace(writes=vectors.writes[np.array(self.rows)])

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
    read = jnp.stack([jnp.sum(part, axis=1) for part in by_kind], axis=1)
    embed = traced.embed * stream_factors(model)[0]
    writes = jnp.concatenate([embed[None], writes.reshape(-1, *embed.shape)])
    if has_experts(model):  # each token has other experts in the same places
        numbers, _ = component_numbers(shape, part_numbers(model, len(embed), traced.routes))
        rows = 1 + model.layout.depth * shape.writers
        by_component = jnp.zeros((rows, *embed.shape), embed.dtype)
        writes = by_component.at[numbers, jnp.arange(len(embed))[None]].add(writes, mode="drop")
    return _Vectors(freeze(model, x, rule=rule), traced.routes, writes, read, traced.direction)


@jax.jit
def _effects(writes: Float[Array, "c t d"], gradient: Float[Array, "t d"]) -> Float[Array, " c"]:
    return jnp.einsum("ctd,td->c", writes, gradient, precision=HIGHEST)


@jax.jit
def _gathered(reads: Float[Array, "c t d"], edges: Float[Array, " c"], end: Float[Array, "t d"]) -> Float[Array, "t d"]:
    return end + jnp.einsum("c,ctd->td", edges, reads, precision=HIGHEST)
