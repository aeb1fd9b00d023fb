"""`Circuit`: every node and edge of the frozen model on the way to one logit, as a result."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from jaxlin import plots
from jaxlin.attribution.circuits.influence import most_influential
from jaxlin.attribution.circuits.network import Network, Path, TokenFlows
from jaxlin.common.annotations import is_integer
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.results import Result

TARGET = "logit"
"""The name of the target among the components."""


@dataclass(frozen=True)
class Edge:
    """What one component makes of what another has written.

    Attributes:
        source: the component that writes.
        target: the component that reads, or ``"logit"``.
        effect: the contribution to the value.
    """

    source: str
    target: str
    effect: float


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(Result):
    r"""All components of the frozen model that have a part in a value, and all edges between them.

    Every node is conserved: what enters it, and what the biases within it contribute, is its effect, and so is what
    leaves it. With the edges $e$, the direct effects $D$ and the biases $\beta$,

    $$n_b = \sum_a e_{ab} + \beta_b, \qquad n_a = \sum_b e_{ab} + D_a.$$

    Components have the names of circuit papers: ``"embed"``, ``"a3.h5"`` for head 5 of layer 3, ``"m3"`` for the MLP of
    layer 3. In a mixture of experts there are ``"m3.e17"`` for an expert that some token was sent to, and ``"m3"`` for
    what every token passes through. ``"a3.bias"`` and ``"m3.bias"`` are biases that belong to no head and no expert.
    ``"p3"`` is what adds the per-layer embeddings of layer 3, from the stream that their gate reads. A head that reads
    the values of an earlier layer reads what was written before that layer, and no more.

    Attributes:
        value: the logit, difference of logits or other target, from the forward pass.
        components: the names of the components, in the order of the forward pass.
        nodes: the total effect of each component, by all paths, ``[c]``.
        edges: the effect of each edge, from the first axis to the second, ``[c, c]``; 0 where there is none.
        direct: the effect of each component past all others, ``[c]``.
        biases: the contribution of the biases within each component, ``[c]``.
        final_bias: the contribution of the biases of the final norm and of the unembedding.
    """

    AXES: ClassVar = {
        "edges": ("source", "target"),
        **dict.fromkeys(("nodes", "direct", "biases"), ("component",)),
    }
    LABELS: ClassVar = {axis: (axis, "components") for axis in ("component", "source", "target")}
    COLUMNS: ClassVar = {"nodes": "effect", "edges": "edge"}
    PROPERTIES: ClassVar = ("defect",)

    value: float
    components: tuple[str, ...]
    nodes: Float[np.ndarray, " c"]
    edges: Float[np.ndarray, "c c"]
    direct: Float[np.ndarray, " c"]
    biases: Float[np.ndarray, " c"]
    final_bias: float

    @property
    def defect(self) -> float:
        """The largest failure of conservation, relative to the largest effect.

        It is over what enters and what leaves each node, and over the sum of direct effects, which is `value`.
        """
        entering = self.edges.sum(axis=0) + self.biases
        reads = [index for index, name in enumerate(self.components) if not self._only_writes(name)]
        errors = [
            *(entering - self.nodes)[reads],
            *self.edges.sum(axis=1) + self.direct - self.nodes,
            self.direct.sum() + self.final_bias - self.value,
        ]
        scale = max(np.abs(self.nodes).max(), np.abs(self.edges).max(), abs(self.value))
        return float(np.abs(errors).max() / scale) if scale else 0.0

    def effect(self, component: str) -> float:
        """The total effect of a component, by all paths.

        Raises:
            JaxlinError: there is no such component.
        """
        return float(self.nodes[self.index(component)])

    def edge(self, source: str, target: str) -> float:
        """The effect of the edge between two components, or from one to the ``"logit"``; 0 where there is none.

        Raises:
            JaxlinError: there is no such component.
        """
        if target == TARGET:
            return float(self.direct[self.index(source)])
        return float(self.edges[self.index(source), self.index(target)])

    def edge_by_position(self, source: str, target: str) -> Float[np.ndarray, "t s"]:
        r"""The effect of an edge by where the `target` writes, $t$, and by where the `source` wrote, $s$: ``[t, s]``.

        All of it sums to the edge. A head moves what it reads at one position to later ones; an MLP, an expert and the
        ``"logit"`` write where they read, on the diagonal alone.

        Raises:
            JaxlinError: there is no such component, or the circuit is from a file, and has no model.
        """
        index, end = self.index(source), None if target == TARGET else self.index(target)
        network = self._behind
        if not self.edge(source, target):
            return np.zeros((network.x.shape[0],) * 2, self.edges.dtype)
        return network.edge_by_position(index, end)

    def index(self, component: str) -> int:
        """The place of a component on the axes.

        Raises:
            JaxlinError: there is no such component.
        """
        if component not in self.components:
            raise JaxlinError(
                f'Component: expected one of the circuit, such as "embed", "a0.h0" or "m0"; found {quoted(component)}.'
            )
        return self.components.index(component)

    def top(self, k: int = 20) -> list[Edge]:
        """The `k` edges with the largest absolute effects, those to the logit among them.

        Raises:
            JaxlinError: `k` is not a positive integer.
        """
        if not is_integer(k) or k < 1:
            raise JaxlinError(f"Edges: expected a positive number of them; found {quoted(k)}.")
        effects = np.concatenate([self.edges, self.direct[:, None]], axis=1)
        order = np.argsort(-np.abs(effects), axis=None, kind="stable")[: int(k)]
        targets = (*self.components, TARGET)
        places = zip(*np.unravel_index(order, effects.shape), strict=True)
        return [Edge(self.components[a], targets[b], float(effects[a, b])) for a, b in places if effects[a, b]]

    def prune(self, fraction: float = 0.9) -> "Circuit":
        """The circuit of the fewest edges that have `fraction` of the influence on the logit.

        The influence of an edge is its share of all that enters its target, in absolute values, times the influence of
        the target, that of the logit being 1; it is the sum over all paths to the logit of the product of such shares.
        What is left of the edges keeps its effects, so that nodes are no longer conserved, and `defect` says by how
        much. `carried` is what really flows along it.

        Raises:
            JaxlinError: `fraction` is not above 0 and at most 1, or no edge is left.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise JaxlinError(f"Pruning: expected a fraction above 0 and at most 1; found {quoted(fraction)}.")
        influential = most_influential(self.edges, self.direct, self.biases, fraction)
        if not influential.any():
            raise JaxlinError("Pruning: expected a circuit with an edge that is not 0; found none.")
        pruned = self.replaced(
            edges=np.where(influential[:, :-1], self.edges, 0), direct=np.where(influential[:, -1], self.direct, 0)
        )
        object.__setattr__(pruned, "_network", self.__dict__.get("_network"))
        return pruned

    @functools.cached_property
    def carried(self) -> float:
        """The part of `value` that the edges of this circuit carry in the frozen model, with all others cut.

        That of a whole circuit is `value`. Where contributions of both signs cancel, a part may be more than the whole.

        Raises:
            JaxlinError: the circuit is from a file, and has no model.
        """
        return self._behind.carried(self.edges != 0, self.direct != 0) + self.final_bias

    def paths(self, k: int = 20, *, steps: int = 400) -> list[Path]:
        """The `k` largest paths from a token, or from biases, to the logit; the effects of all paths sum to `value`.

        The effect of a path is what flows along it alone, exactly. There are far too many to look at all: from the
        logit back, the largest flow that has been met is followed on to where it comes from, `steps` times. A path
        whose flow starts small and grows, because others cancel it, can be missed.

        Raises:
            JaxlinError: the circuit is from a file, and has no model, or `k` or `steps` is not a positive integer.
        """
        for name, number in {"paths": k, "steps": steps}.items():
            if not is_integer(number) or number < 1:
                raise JaxlinError(f"Paths: expected a positive number of {name}; found {quoted(number)}.")
        return self._behind.paths(int(k), int(steps))

    def by_token(self) -> TokenFlows:
        """What flows along the edges of this circuit at each token, with all others cut.

        Raises:
            JaxlinError: the circuit is from a file, and has no model.
        """
        return self._behind.by_token(self.edges != 0, self.direct != 0)

    @property
    def _behind(self) -> Network:
        network = self.__dict__.get("_network")
        if network is None:
            raise JaxlinError(
                "Circuit: expected one that jaxlin.circuit has returned, which has a model to follow paths in; found "
                "one from a file or a copy."
            )
        return network

    def to_networkx(self) -> Any:
        """A `networkx.DiGraph` with the edges that are not 0: nodes and edges have an ``effect``.

        Raises:
            JaxlinError: networkx is not installed.
        """
        try:
            import networkx
        except ModuleNotFoundError as error:
            raise JaxlinError(
                'Graph: expected networkx; found none. Install it: pip install "jaxlin[graph]".'
            ) from error
        graph = networkx.DiGraph(value=self.value)
        graph.add_node(TARGET, effect=self.value)
        for name, effect in zip(self.components, self.nodes.tolist(), strict=True):
            graph.add_node(name, effect=effect)
        for a, b in zip(*np.nonzero(self.edges), strict=True):
            graph.add_edge(self.components[a], self.components[b], effect=float(self.edges[a, b]))
        for a in np.nonzero(self.direct)[0]:
            graph.add_edge(self.components[a], TARGET, effect=float(self.direct[a]))
        return graph

    def plot(self, ax: Any = None, *, k: int = 40) -> Any:
        """The `k` largest edges as a graph, layers upward, and the axes.

        Args:
            ax: axes of matplotlib; by default those of a new figure.
            k: how many edges to draw.

        Raises:
            JaxlinError: matplotlib is not installed, `ax` is not axes, or `k` is not a positive integer.
        """
        edges = self.top(k)
        ax = plots.axes_or_new(ax)
        drawn = {name for edge in edges for name in (edge.source, edge.target)}
        plots.layered_graph(
            ax,
            {name: row_of(name) for name in (*self.components, TARGET) if name in drawn},
            [(edge.source, edge.target, edge.effect) for edge in edges],
        )
        plots.write(ax, title=f"the {len(edges)} largest edges of {self.value:+.3f}")
        return ax

    def __repr__(self) -> str:
        edges = np.count_nonzero(self.edges) + np.count_nonzero(self.direct)
        sizes = f"components={len(self.components)}, edges={edges}, defect={self.defect:.0e}"
        return f"Circuit(value={self.value:.4f}, {sizes})"

    @staticmethod
    def _only_writes(name: str) -> bool:
        return name == "embed" or name.endswith(".bias")


def row_of(name: str) -> int:
    """The row of a component in a drawing: attention, MLP and per-layer embeddings of a layer, one above the other."""
    if name in ("embed", TARGET):
        return -1 if name == "embed" else 2**31
    layer = int(name[1:].split(".")[0])
    return 3 * layer + "amp".index(name[0])
