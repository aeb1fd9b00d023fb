"""Ablation of edges: against the model as it is, and against a pass in which one component's input is made by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlin
from jaxlin.attribution.circuits.expansion import shared_kind
from jaxlin.causal import edge_ablation
from jaxlin.causal.edges import every_component, intact, possible_edges, read_each
from jaxlin.causal.own_streams import writes
from jaxlin.common.errors import JaxlinError
from jaxlin.nn.context import Context
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.stack import layer_of

TARGET = (9, 4)
MIXTURES = ("mixtral", "deepseek_v3")
"""With experts alone, and with shared experts and a layer without experts."""

FURTHER = {"gemma4_text, per layer": (("m0", "p1"), ("p0", "a4.h2"), ("p0", "m4"), ("a4.h1", "m5"))}
"""More edges to cut, by variant: of per-layer embeddings, and to and from heads that read the values of layer 2."""

OTHER = [(7 * token + 3) % 90 for token in tiny.IDS]


def difference(model: jaxlin.Decoder, h: jax.Array) -> float:
    logits = np.asarray(model.unembed(h), np.float64)
    return float(logits[TARGET[0]] - logits[TARGET[1]])


@pytest.mark.parametrize("variant", ["llama, biases", "gemma2", "olmo2", "phi", "gemma4_text, per layer", *MIXTURES])
def test_edges_of_every_kind_of_block(variant: str, checkpoint: Callable[[str], Path], x64: None) -> None:
    """With all edges the model as it is, without any the other prompt, and one edge by hand."""
    model, _ = jaxlin.load(checkpoint(variant), dtype="float64")
    x, other = model.embed(tiny.IDS), model.embed(OTHER)
    circuit = jaxlin.circuit(model, x, TARGET)
    ablation = edge_ablation(model, x, other, TARGET, [circuit, circuit.prune(0.5)])
    clean, corrupt = (difference(model, model(prompt)[-1]) for prompt in (x, other))
    np.testing.assert_allclose([ablation.value, ablation.other], [clean, corrupt], atol=1e-10)
    np.testing.assert_allclose([ablation.faithfulness[0], ablation.completeness[0]], 1, atol=1e-8)
    assert abs(ablation.faithfulness[1] - 1) > 1e-3
    values = edge_ablation(model, x, other, TARGET, circuit.prune(0.5), reads="values")
    np.testing.assert_allclose([values.value, values.other], [clean, corrupt], atol=1e-10)
    assert abs(values.within - ablation.within[1:]) > 1e-3

    every = every_component(model)
    names = [each.name for each in every]
    here, substitutes = (writes(model, prompt)[0] for prompt in (x, other))
    entering, heads = passed(model, x)
    for source, target in (("embed", "m1"), ("a0.h1", "a1.h0"), ("m0", "logit"), *FURTHER.get(variant, ())):
        edges = possible_edges(every)
        a, b = names.index(source), [*names, "logit"].index(target)
        assert edges[a, b]
        edges[a, b] = False
        runs = jax.tree.map(lambda part: part[None], intact(model, edges))
        value = float(read_each(model, model.check_embeddings(x), substitutes, runs, jnp.array(TARGET))[0])
        by_hand = without_edge(model, entering, heads, target, substitutes[a] - here[a])
        np.testing.assert_allclose(value, by_hand, atol=1e-9, err_msg=f"{source} to {target}")


def passed(model: jaxlin.Decoder, x: jax.Array) -> tuple[list[Any], list[jax.Array]]:
    """What enters each block and the final norm, and what enters the output projection of each block."""
    entering, heads = [model.begin(model.check_embeddings(x))], []
    for layer in range(model.layout.depth):
        ctx = Context()
        entering.append(model.block(layer, entering[layer], ctx))
        heads.append(ctx.hooks.values["gated_heads"])
    return entering, heads


def without_edge(
    model: jaxlin.Decoder, entering: list[Any], heads: list[jax.Array], target: str, change: jax.Array
) -> float:
    """The difference of logits where the stream that the output, or one component, reads has a change.

    Args:
        model: the model.
        entering, heads: as of `passed`.
        target: the name of the component, or ``"logit"``.
        change: the change, as it is in the stream after the last block.
    """
    factors = model.direct_factors()
    if target == "logit":
        return difference(model, model.norm(entering[-1].stream + change, Context())[-1])
    layer, _, head = target[1:].partition(".h")
    layer, inputs = int(layer), entering[int(layer)]
    if target[0] == "a":
        kind = shared_kind(layer_of(model.layers, model.layout.locate(layer)))
        if kind is not None:
            source = model.config.value_layers[layer]
            changed = entering[source]._replace(stream=entering[source].stream + change / factors[source])
            shared = model.block(source, changed, Context()).shared
            inputs = inputs._replace(shared={**inputs.shared, kind: shared[kind]})
        edited = Context()
        model.block(layer, inputs._replace(stream=inputs.stream + change / factors[layer]), edited)
        own = edited.hooks.values["gated_heads"][:, int(head)]
        hooks = Hooks(replacements={"gated_heads": heads[layer].at[:, int(head)].set(own)})
    else:
        hooks = Hooks(probes={"mlp_in" if target[0] == "m" else "per_layer_in": change / factors[layer]})
    after = model.block(layer, entering[layer], Context(hooks=hooks))
    after, _ = model.scan(after, lambda _: Context(), start=layer + 1)
    return difference(model, model.norm(after.stream, Context())[-1])


def test_zero_and_the_mean_of_prompts() -> None:
    model, tokenizer = jaxlin.load()
    x, *others = (model.embed(tokenizer.encode(text)) for text in ("The cat sat on", "The man sat by", "A cat is on"))
    assert {each.shape for each in others} == {x.shape}
    target = (5, 6)
    circuit = jaxlin.circuit(model, x, target).prune(0.8)
    mean = edge_ablation(model, x, jnp.stack(others), target, circuit)
    one = edge_ablation(model, x, jnp.stack([others[0]] * 2), target, circuit)
    np.testing.assert_allclose(one.within, edge_ablation(model, x, others[0], target, circuit).within, atol=1e-4)
    assert np.abs(mean.within - one.within).max() > 1e-3
    nothing = edge_ablation(model, x, None, target, circuit)
    zero = model.norm(jnp.zeros_like(x), Context())[-1]
    np.testing.assert_allclose(nothing.other, float(jnp.subtract(*model.unembed(zero)[jnp.array(target)])), atol=1e-5)
    assert nothing.counts == np.count_nonzero(circuit.edges) + np.count_nonzero(circuit.direct)
    for bad, message in (
        ((x, others[0][:2], target, circuit), "prompts of as many tokens"),
        ((x, others[0], target, []), "expected circuits"),
        ((x, others[0], target, circuit.replaced(components=("a99.h0", *circuit.components[1:]))), "of this model"),
    ):
        with pytest.raises(JaxlinError, match=message):
            edge_ablation(model, *bad)
    with pytest.raises(JaxlinError, match="everything"):
        edge_ablation(model, x, None, target, circuit, reads="queries")


def test_several_streams_are_refused(checkpoint: Callable[[str], Path]) -> None:
    model, _ = jaxlin.load(checkpoint("gemma3n_text"))
    x = model.embed(tiny.IDS)
    with pytest.raises(JaxlinError, match="expected a model with one residual stream; found a Gemma3n"):
        edge_ablation(model, x, None, TARGET, jaxlin.circuit(model, x, TARGET))
