"""`circuit`: the exact flow graph of one prediction."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.attribution.circuits.edges import edges
from jaxlin.attribution.circuits.flow import flow
from jaxlin.attribution.circuits.network import Network
from jaxlin.attribution.circuits.places import Component, Places, components, part_numbers, places
from jaxlin.attribution.circuits.result import Circuit
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.frozen import rule_of
from jaxlin.linearize.targets import ResolvedTarget, Target, Words, resolve_target
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import position_in
from jaxlin.results import traced_to
from jaxlin.tokenizer import Tokenizer


@checked
def circuit(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    target: Target | Words,
    *,
    position: int = -1,
    rule: Rule | str | None = None,
    tokenizer: Tokenizer | None = None,
    remat: bool = False,
) -> Circuit:
    r"""Every edge of the network that made a logit: what each head, MLP and expert makes of what earlier ones wrote.

    With every nonlinear factor frozen, the model is a linear flow network. A component $a$ adds $o_a[t]$ to the
    residual stream of token $t$, and a later one, $b$, reads it; through $b$ alone the target has the gradient
    $r_b[t]$ in the stream. The edge $e(a \to b) = \sum_t r_b[t] \cdot o_a[t]$ is exact. All edges take one forward
    pass, one backward pass and a matrix product, and at every node what enters is what leaves: see `Circuit`.

    The edges go through values alone. Why a head looked where it did is a question about its frozen pattern.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        target: a token id, a pair of ids or of words, or a direction, as in `jaxlin.attribute`.
        position: the position of the logit; a negative one counts from the last token.
        rule: the freeze rule of gated MLPs, by default the model's own, on which effects depend.
        tokenizer: the model's tokenizer, which encodes words.
        remat: store the stream that enters each block instead of its frozen factors, for long prompts.

    Raises:
        PromptError: `x` does not have the shape ``[t, d]``.
        JaxlinError: an invalid target or rule, or a model that carries edits.
        SiteError: there is no such position.
        TokenizerError: a word is not one token.
    """
    check_not_traced("Circuit", model, x, target)
    x = model.check_embeddings(x)
    check_no_edits("Circuit", model)
    position, rule = position_in(x.shape[0], position), rule_of(model, rule)
    resolved = resolve_target(model, target, x, position, tokenizer)
    numbers = jax.device_get(program(model, x, position, resolved, rule, remat))
    result, existing, rows = _assembled(model, numbers)
    object.__setattr__(result, "_network", Network(model, x, position, resolved, rule, existing, rows))
    return traced_to(result, model, x, tokenizer=tokenizer, rule=rule, target=resolved, position=position)


def check_no_edits(name: str, model: Decoder) -> None:
    """Refuse a model in whose residual stream there is more than what its components have written.

    Args:
        name: the first words of the message.
        model: the decoder.

    Raises:
        JaxlinError: it carries edits.
    """
    if model.edits is not None:
        raise JaxlinError(
            f"{name}: expected a model without edits, whose changes of the stream would belong to no component; found "
            "one with edits. jaxlin.attribute says what they contribute."
        )


@functools.partial(jax.jit, static_argnames=("rule", "remat"))
def program(
    model: Decoder, x: Float[Embeddings, "t d"], position: Any, target: ResolvedTarget, rule: Rule, remat: bool
) -> dict[str, Any]:
    """All numbers of a circuit, by layers and places."""
    traced = flow(model, x, position, target, rule, remat)
    numbers, shape = part_numbers(model, x.shape[0], traced.routes), places(model, traced)

    def by_component(parts: Float[Array, "l t p"]) -> Float[Array, "l m"]:
        if shape.mlp == 1:
            return jnp.sum(parts, axis=1)
        zeros = jnp.zeros((parts.shape[0], shape.mlp), parts.dtype)
        return jax.vmap(lambda zeros, number, part: zeros.at[number].add(part, mode="drop"))(zeros, numbers, parts)

    return {
        "edges": edges(model, traced),
        "value": traced.value,
        "final_bias": traced.final_bias,
        "embed": traced.embed_effect,
        "heads": traced.heads,
        "mlp": by_component(traced.parts),
        "per_layer": traced.per_layer,
        "head_biases": traced.head_biases,
        "mlp_biases": by_component(traced.part_biases),
        "biases": traced.biases,
    }


def _assembled(model: Decoder, numbers: dict[str, Any]) -> tuple[Circuit, tuple[Component, ...], tuple[int, ...]]:
    """The circuit, its components, and the number of each among all that there may be."""
    biases, (depth, heads), mlp = np.asarray(numbers["biases"]), numbers["heads"].shape, numbers["mlp"].shape[1]
    between, direct = (np.asarray(part) for part in numbers["edges"])
    per_layer = np.asarray(numbers["per_layer"]).reshape(-1, depth)
    every = components(model, Places(heads, int(len(biases) > 0), mlp, int(len(biases) > 1), len(per_layer)))
    reads, order = np.array([each.reads for each in every]), np.array([each.order for each in every])
    read_at = np.array([each.reads_at for each in every if each.reads])
    edges = np.zeros((len(every), len(every)), between.dtype)
    edges[:, reads] = np.where(order[:, None] < read_at, between, 0)
    effects, own = np.zeros_like(direct), np.zeros_like(direct)

    def by_reader(heads: np.ndarray, mlp: np.ndarray, per_layer: np.ndarray) -> np.ndarray:
        return np.concatenate([np.nan_to_num(heads), mlp, per_layer.T], axis=1).reshape(-1)

    effects[reads] = by_reader(numbers["heads"], numbers["mlp"], per_layer)
    effects[~reads] = np.append(numbers["embed"], biases.T)
    own[reads] = by_reader(numbers["head_biases"], numbers["mlp_biases"], np.zeros_like(per_layer))
    exists = edges.any(axis=0) | edges.any(axis=1) | (direct != 0)
    existing = tuple(each for each, there in zip(every, exists, strict=True) if there)
    result = Circuit(
        value=float(numbers["value"]),
        components=tuple(each.name for each in existing),
        nodes=effects[exists],
        edges=edges[exists][:, exists],
        direct=direct[exists],
        biases=own[exists],
        final_bias=float(numbers["final_bias"]),
    )
    return result, existing, tuple(np.flatnonzero(exists).tolist())
