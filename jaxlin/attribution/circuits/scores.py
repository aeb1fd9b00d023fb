"""`attention_scores`: why a head looked where it did."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxlin.attribution.circuits.expansion import value_layers
from jaxlin.attribution.circuits.places import components
from jaxlin.attribution.circuits.score_result import BIASES, AttentionScores
from jaxlin.attribution.circuits.score_tables import (
    Pair,
    score_numbers,
    score_places,
    scores_of_pairs,
)
from jaxlin.attribution.circuits.tracing import check_no_edits
from jaxlin.common.annotations import is_integer
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.linearize.frozen import rule_of
from jaxlin.nn.attention import SoftmaxAttention
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.prompt import Embeddings, array_of
from jaxlin.nn.stack import layer_of
from jaxlin.results import traced_to


@checked
def attention_scores(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    layer: int,
    head: int,
    query: int,
    key: int,
    *,
    centred: bool = True,
    tokens: bool = True,
    rule: Rule | str | None = None,
) -> AttentionScores:
    r"""Why a head looked from `query` at `key`: its score there, as an exact sum over pairs of what made both.

    The stream that the head reads is a sum of what components have written to it. With the norms on the way frozen, the
    query is linear in it at one token and the key at the other, so that the score is bilinear:

    $$s = \sum_{ij} a_i[q]^\top M_{q - k}\, b_j[k],$$

    with the rotation, the factor of scores, the norms of queries and keys, what queries grow by and the ratio of a
    softcap in $M$. A softmax does not see what all keys have in common, so that by default the mean over the keys that
    the query sees is taken from each entry. (A sink, which has a score of its own, does see it.) For why the head
    looked at one key and not at another: ``scores.minus(others)``.

    It costs about a forward pass, and for tokens as much for each of them up to the layer. One program serves all
    heads, queries and keys of layers that are alike; with a table by token, of one layer.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        layer: the layer; a negative one counts from the last.
        head: the number of the query head in the layer, likewise.
        query: the position that looks, likewise.
        key: the position that is looked at, likewise.
        centred: whether the mean over keys is taken from the tables.
        tokens: whether there is a table by token.
        rule: the freeze rule of gated MLPs, by default the model's own; the table by token depends on it.

    Raises:
        PromptError: `x` does not have the shape ``[t, d]``.
        JaxlinError: there is no such layer, head or position; the query does not see the key; the layer is a gated
            delta rule, which has no scores; an invalid rule; or a model that carries edits.
    """
    check_not_traced("Attention scores", model, x, (layer, head, query, key))
    x = model.check_embeddings(x)
    check_no_edits("Attention scores", model)
    layer = _index("a layer", layer, model.layout.depth)
    head = _index(f"a head of layer {layer}", head, _heads(model, x, layer))
    query, key = (_index(f"a position as the {name}", at, x.shape[0]) for name, at in (("query", query), ("key", key)))
    first = max(0, int(model.config.first_visible(jnp.asarray([query]))[layer, 0]))
    if not first <= key <= query:
        raise JaxlinError(
            f"Attention scores: expected a key that the query at position {query} sees in layer {layer}, in "
            f"{first}..{query}; found {key}."
        )
    for name, flag in {"centred": centred, "tokens": tokens}.items():
        if not isinstance(flag, bool):
            raise JaxlinError(f"Attention scores: expected True or False for {name}; found {quoted(flag)}.")
    rule = rule_of(model, rule)
    pair = _pair(model, layer, head, query, key)
    numbers = jax.device_get(score_numbers(model, x, pair, float(centred), rule, layer if tokens else None))
    return _result(model, x, (layer, head, query, key), numbers, centred, rule)


def scores_of_heads(
    model: Decoder, x: Float[Embeddings, "t d"], heads: Sequence[tuple[int, int, int, int]], rule: Rule
) -> list[AttentionScores]:
    """Centred scores of several heads by component, for a forward pass each kind of layer.

    Args:
        model: the model.
        x: the input embeddings.
        heads: the layer, head, query and key of each, of layers with softmax attention.
        rule: the freeze rule.
    """
    alike: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for each in heads:
        index = model.layout.locate(each[0])
        alike.setdefault((index.segment, index.place), []).append(each)
    results = {}
    for asked in alike.values():
        pairs = [_pair(model, *each) for each in asked]
        stacked = jax.tree.map(lambda *numbers: jnp.asarray(numbers), *pairs)
        numbers = jax.device_get(scores_of_pairs(model, x, stacked, rule))
        for i, each in enumerate(asked):
            results[each] = _result(model, x, each, jax.tree.map(lambda a, i=i: a[i], numbers), True, rule)
    return [results[each] for each in heads]


def has_scores(model: Decoder, layer: int) -> bool:
    """Whether the attention of a layer is a softmax of scores."""
    block = jax.eval_shape(lambda model: layer_of(model.layers, model.layout.locate(layer)), model)
    return isinstance(getattr(block, block.mixer), SoftmaxAttention)


def _pair(model: Decoder, layer: int, head: int, query: int, key: int) -> Pair:
    locate, keys = model.layout.locate, int(value_layers(model)[layer])
    return Pair(locate(layer), locate(keys), head, query, key)


def _result(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    place: tuple[int, int, int, int],
    numbers: Any,
    centred: bool,
    rule: Rule,
) -> AttentionScores:
    """The `ScoreNumbers` of a place, as arrays of NumPy, as a result."""
    layer, head, query, key = place
    names, rows = _components(model, numbers.present, layer)
    result = AttentionScores(
        layer=layer,
        head=head,
        query=query,
        key=key,
        score=float(numbers.score),
        baseline=float(numbers.mean) if centred else 0.0,
        probability=float(numbers.probability),
        components=names,
        by_component=numbers.components[np.ix_(rows, rows)],
        by_token=numbers.tokens,
    )
    return traced_to(result, model, x, rule=rule)


def _index(what: str, index: Any, count: int) -> int:
    """`index`, counted from 0."""
    if not is_integer(index) or not -count <= index < count:
        raise JaxlinError(
            f"Attention scores: expected {what}, in 0..{count - 1} (or from -{count}); found {quoted(index)}."
        )
    return int(index) % count


def _heads(model: Decoder, x: Float[Embeddings, "t d"], layer: int) -> int:
    """The number of query heads of a layer that has scores."""
    if not has_scores(model, layer):
        scored = [each for each in range(model.layout.depth) if has_scores(model, each)]
        raise JaxlinError(
            f"Attention scores: expected a layer of softmax attention, one of {quoted(scored)}; found layer {layer}, a "
            "gated delta rule, whose pattern is no softmax of scores."
        )

    def queries(model: Decoder, x: Float[Embeddings, "t d"]) -> Any:
        stack = model.layers, model.schedule(x.shape[0])
        block, schedule = layer_of(stack, model.layout.locate(layer))
        return block.read_scores(array_of(x), schedule, Context())[0]

    return jax.eval_shape(queries, model, x).shape[1]


def _components(model: Decoder, present: np.ndarray, layer: int) -> tuple[tuple[str, ...], list[int]]:
    """The names of the components that a layer reads, and their rows in a table of all places."""
    depth = model.layout.depth
    heads = (len(present) - 2) // depth - score_places(model, 0).writers
    every = components(model, score_places(model, heads))
    earlier = [row for row, each in enumerate(every) if (each.layer < layer or row == 0) and present[row]]
    return (*(every[row].name for row in earlier), BIASES), [*earlier, len(every)]
