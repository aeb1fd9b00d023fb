r"""Ablation of edges: what the ordinary model does with the edges of a circuit alone, and without them.

A `jaxlin.attribution.Circuit` is exact for the frozen model. Here nothing is frozen: every head and MLP of the
untouched model reads what the others write along the edges of the circuit, and along all others it reads what they
write in another prompt, on average in several, or nothing. A circuit that is the whole cause gives the value of the
untouched model; and the model without the edges of the circuit gives that of the other prompt.

Source: the ablation of edges is the path patching of Goldowsky-Dill et al., "Localizing Model Behavior with Path
Patching", 2023; faithfulness as in Hanna, Pezzelle and Belinkov, "Have Faith in Faithfulness: Going Beyond Circuit
Overlap When Finding Model Mechanisms", 2024; and that of the complement as in Marks et al., "Sparse Feature Circuits",
2024.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlin import plots
from jaxlin.attribution.circuits.expansion import has_several_streams
from jaxlin.attribution.circuits.places import Component, components
from jaxlin.attribution.circuits.result import Circuit
from jaxlin.attribution.circuits.tracing import check_no_edits
from jaxlin.causal.effects import BATCH_SIZE, prompt_up_to
from jaxlin.causal.own_streams import Intact, output, places_of, writes
from jaxlin.common.annotations import described, is_numeric
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.errors import JaxlinError, one_of
from jaxlin.common.printable import kind_of, quoted
from jaxlin.linearize.targets import Target, Words, read_target, resolve_target
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import Embeddings
from jaxlin.results import Result, traced_to
from jaxlin.tokenizer import Tokenizer

Reads = Literal["everything", "values"]

BATCH_BYTES = 2**29
"""The most memory for what the components of runs at the same time write, in bytes."""


@dataclass(frozen=True, eq=False, repr=False)
class EdgeAblation(Result):
    """What the ordinary model does along the edges of some circuits alone, and without them.

    Attributes:
        value: the value of the target with all edges: a logit, a difference of two, or a projection.
        other: its value with none.
        within: its value with the edges of each circuit alone, ``[n]``.
        without: its value with all edges but those, ``[n]``.
        counts: how many edges between heads, MLPs and output each circuit has, ``[n]``.
    """

    AXES: ClassVar = dict.fromkeys(("within", "without", "counts"), ("circuit",))
    PROPERTIES: ClassVar = ("faithfulness", "completeness")

    value: float
    other: float
    within: Float[np.ndarray, " n"]
    without: Float[np.ndarray, " n"]
    counts: Int[np.ndarray, " n"]

    @property
    def faithfulness(self) -> Float[np.ndarray, " n"]:
        r"""$(m_\text{within} - m_\text{other}) / (m - m_\text{other})$: 1 if the edges are the whole cause.

        It may be above 1, where edges that work against the target are cut; not finite if both values are equal.
        """
        return self._share(self.within)

    @property
    def completeness(self) -> Float[np.ndarray, " n"]:
        """1 less the faithfulness of all other edges: 1 if nothing of the difference is left without the circuit."""
        return 1 - self._share(self.without)

    def _draw(self, ax: Any) -> None:
        """Faithfulness and completeness over the number of edges."""
        order = np.argsort(self.counts, kind="stable")
        series = {"faithfulness": self.faithfulness[order], "completeness": self.completeness[order]}
        plots.curves(ax, self.counts[order], series)
        plots.write(ax, title="Edges of circuits alone, and cut", xlabel="edges", ylabel="share of the difference")

    def _share(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (values - self.other) / np.float64(self.value - self.other)


@checked
def edge_ablation(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    other: Float[Embeddings, "*n s d"] | Sequence[Float[Embeddings, "s d"]] | None,
    target: Target | Words,
    circuits: Circuit | Sequence[Circuit],
    *,
    reads: Reads | str = "everything",
    position: int = -1,
    tokenizer: Tokenizer | None = None,
) -> EdgeAblation:
    r"""Run the ordinary model with the edges of each of some circuits alone, and with all edges but those.

    A component $b$ reads $\sum_{a \to b} o_a + \sum_{\text{other } a} c_a$: along its edges what $a$ writes in this
    run, and otherwise $c_a$, what it writes at the same position of `other`. What the biases of attention add is
    always read. Each run takes about as much as three forward passes. A head that reads the keys and
    values of an earlier layer reads its query in its own. From a component in between, no edge of a circuit leads to
    the head: this one is intact if any edge of the component is.

    Args:
        model: any decoder that `jaxlin.circuit` takes. The experts of a layer read one stream, as their router does: an
            edge to or from one of them is one of the whole MLP.
        x: the input embeddings.
        other: the input embeddings of a prompt of as many tokens; those of several, ``[n, t, d]`` or a list, for the
            mean of what each component writes in them; or None for zero.
        target: the target, as in `jaxlin.attribute`.
        circuits: one circuit or several, of this model: their edges that are not 0.
        reads: what a head reads along its edges. ``"everything"``: queries, keys and values. ``"values"``: values
            alone, as the edges of a circuit of the frozen model have it; then queries and keys are those at `x`.
        position: where the target is read; negative counts from the last token. Later tokens are left out.
        tokenizer: the model's tokenizer, if the target is words.

    Raises:
        PromptError: `x` or `other` is not of shape ``[t, d]``.
        JaxlinError: prompts of different lengths, an invalid target, no circuits, circuits of another model, or a
            model that has several residual streams, or that carries edits.
        SiteError: no such position.
        TokenizerError: a word that is not one token.
    """
    one_of("Ablation of edges, reads", reads, get_args(Reads))
    prompt, x = x, prompt_up_to(model, x, position)
    check_no_edits("Ablation of edges", model)
    _check_one_stream(model)
    others = _checked_others(model, prompt, other)
    each = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not each or not all(isinstance(circuit, Circuit) for circuit in each):
        raise JaxlinError(f"Ablation of edges: expected circuits, as jaxlin.circuit gives; found {quoted(circuits)}.")
    resolved = resolve_target(model, target, x, -1, tokenizer)
    every = every_component(model)
    edges = [_edges_of(circuit, every) for circuit in each]
    possible = possible_edges(every)
    runs = [possible, np.zeros_like(possible), *edges, *(possible & ~own for own in edges)]
    substitutes, patterns = _prepare(model, x, jax.tree.map(lambda a: a[:, : len(x)], others))
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *(intact(model, run) for run in runs))
    values = np.asarray(
        read_each(model, x, substitutes, stacked, resolved, patterns if reads == "values" else None), np.float64
    )
    within, without = np.split(values[2:], 2)
    counts = np.array([own.sum() for own in edges])
    result = EdgeAblation(float(values[0]), float(values[1]), within, without, counts)
    settings = {"target": resolved, "position": position, "reads": reads}
    return traced_to(result, model, prompt, tokenizer=tokenizer, **settings)


def every_component(model: Decoder) -> list[Component]:
    """All components of a model that `edge_ablation` takes, in the order of `own_streams.writes`."""
    return components(model, places_of(model))


def possible_edges(every: Sequence[Component]) -> Bool[np.ndarray, "a e"]:
    """Where there can be an edge, from each component to each, and to the output last; not from biases."""
    order, reads = np.array([each.order for each in every]), np.array([each.reads for each in every])
    writes = np.array([each.name == "embed" or each.reads for each in every])
    between = (order[:, None] < order) & reads & writes[:, None]
    return np.concatenate([between, writes[:, None]], axis=1)


def intact(model: Decoder, edges: Bool[np.ndarray, "a e"]) -> Intact:
    """Which `edges` are intact, by layers."""
    shape, depth = places_of(model), model.layout.depth
    rows = edges[:, 1:-1].reshape(len(edges), depth, shape.writers)
    heads = np.moveaxis(rows[:, :, : shape.heads], 0, 1)
    mlps = rows[:, :, shape.heads + shape.attn_bias].T
    per_layer = jnp.asarray(rows[:, :, -1].T) if shape.per_layer else None
    return Intact(jnp.asarray(heads), jnp.asarray(mlps), per_layer, jnp.asarray(edges[:, -1]))


def read_each(
    model: Decoder,
    x: Float[Embeddings, "p d"],
    substitutes: Float[Array, "a p d"],
    runs: Intact,
    target: Array,
    patterns: Any = None,
) -> Float[Array, " n"]:
    """The value of `target` at the last position of each of some runs, whose intact edges are stacked."""
    batch_size = max(1, min(BATCH_SIZE, BATCH_BYTES // substitutes.nbytes))
    return _read_each(model, x, substitutes, runs, target, patterns, batch_size)


@functools.partial(jax.jit, static_argnames="batch_size")
def _read_each(
    model: Decoder, x: Any, substitutes: Array, runs: Intact, target: Array, patterns: Any, batch_size: int
) -> Float[Array, " n"]:
    def read(run: Intact) -> Float[Array, ""]:
        return read_target(model, output(model, x, substitutes, run, patterns)[-1], target, Context())

    return jax.lax.map(read, runs, batch_size=batch_size)


@jax.jit
def _prepare(model: Decoder, x: Float[Embeddings, "p d"], others: Any) -> tuple[Float[Array, "a p d"], Any]:
    """What stands in for what each component writes, and the attention patterns at `x`."""
    written, patterns = writes(model, x)
    if others is None:
        return jnp.zeros_like(written), patterns
    return jnp.mean(jax.lax.map(lambda other: writes(model, other)[0], others), axis=0), patterns


def _check_one_stream(model: Decoder) -> None:
    if has_several_streams(model):
        raise JaxlinError(
            f"Ablation of edges: expected a model with one residual stream; found {kind_of(model)}, which has several. "
            "The untouched model mixes them by functions of the whole stream, in which components have no shares. "
            "jaxlin.causal.unit_patching replaces the outputs of its heads."
        )


def _checked_others(model: Decoder, x: Any, other: Any) -> Any:
    """The other prompts, with an axis for them; None for zero."""
    if other is None:
        return None
    check_not_traced("Ablation of edges", other)
    if not is_numeric(other):
        raise JaxlinError(
            f"Ablation of edges: expected another prompt, as model.embed gives, or several; found {described(other)}."
        )
    others = [other] if np.ndim(other) == 2 else other
    if np.ndim(other) not in (2, 3) or not len(others):
        raise JaxlinError(
            f"Ablation of edges: expected another prompt, as model.embed gives, or several; found {np.shape(other)}."
        )
    others = [model.check_embeddings(each) for each in others]
    if others[0].shape != np.shape(x):
        raise JaxlinError(
            f"Ablation of edges: expected prompts of as many tokens; found {np.shape(x)[0]} and {others[0].shape[0]}."
        )
    return jax.tree.map(lambda *each: jnp.stack(each), *others)


def _edges_of(circuit: Circuit, every: Sequence[Component]) -> Bool[np.ndarray, "a e"]:
    """The edges of a circuit that are not 0, among all components; those of experts are of their MLP."""
    index = {each.name: number for number, each in enumerate(every)}
    names = [name.partition(".")[0] if name.startswith("m") else name for name in circuit.components]
    if not set(names) <= index.keys():
        unknown = min(set(names) - index.keys())
        raise JaxlinError(f"Ablation of edges: expected circuits of this model; found one with {quoted(unknown)}.")
    rows = np.array([index[name] for name in names])
    edges = np.zeros((len(every), len(every) + 1), bool)
    effects = np.concatenate([circuit.edges, circuit.direct[:, None]], axis=1)
    sources, targets = np.nonzero(effects)
    edges[rows[sources], np.append(rows, len(every))[targets]] = True
    order, reads_at = (np.array([getattr(each, name) for each in every]) for name in ("order", "reads_at"))
    edges[:, :-1] |= (order[:, None] >= reads_at) & edges.any(axis=1, keepdims=True)
    return edges & possible_edges(every)
