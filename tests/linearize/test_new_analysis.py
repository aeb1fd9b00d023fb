"""A new analysis in a dozen lines, from what `jaxlin.linearize` exports and nothing below it."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlin
from jaxlin.linearize import pull_back, record, resolve_target, stream_direction, target_direction

Checkpoint = Callable[[str], Path]


def contributions_at(
    model: jaxlin.Decoder, x: jax.Array, target: jax.Array, layer: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the stream of each token before block `layer`, and the biases from there on, contribute to `target`."""
    recording = record(model, x, ("resid_pre",))
    value, final_bias, direction = target_direction(model, recording, target, position=-1)
    stream = recording.sites["resid_pre"]
    gradients = pull_back(model, recording.frozen, direction, {"resid_pre": stream}, biases=True)
    tokens = jnp.einsum("td,td->t", gradients.added["resid_pre"][layer], stream[layer])
    return value, tokens, jnp.sum(gradients.biases[layer:]) + final_bias


@pytest.mark.parametrize("name", ["gemma2", "phi"])  # a softcap and norms after the blocks' parts; biases
@pytest.mark.parametrize("layer", [0, 2])
def test_an_exact_sum(name: str, layer: int, checkpoint: Checkpoint, x64: None) -> None:
    model, tokenizer = jaxlin.load(checkpoint(name), dtype="float64")
    x = model.embed(tiny.IDS)
    target = resolve_target(model, ("A", "B"), x, -1, tokenizer)
    value, tokens, bias = jax.jit(contributions_at, static_argnames="layer")(model, x, target, layer=layer)
    np.testing.assert_allclose(tokens.sum() + bias, value, atol=1e-12)
    logits = model.unembed(model(x)[-1])
    np.testing.assert_allclose(value, logits[target[0]] - logits[target[1]], atol=1e-12)


def test_gradients_of_a_batch_of_directions_are_those_of_each(checkpoint: Checkpoint, x64: None) -> None:
    model, _ = jaxlin.load(checkpoint("gemma2"), dtype="float64")
    frozen = jaxlin.freeze(model, model.embed(tiny.IDS))
    u = jax.random.normal(jax.random.key(0), (3, model.config.hidden_size), "float64")

    def through(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        direction = stream_direction(model, frozen, u, 4)
        shape = jax.ShapeDtypeStruct((model.config.num_hidden_layers, *direction.shape), u.dtype)
        gradients = pull_back(model, frozen, direction, {"resid_mid": shape}, start=1)
        return gradients.stream, gradients.added["resid_mid"]

    stream, inside = through(u)
    for i, one in enumerate(u):
        np.testing.assert_allclose(stream[:, i], through(one)[0], atol=1e-12)
        np.testing.assert_allclose(inside[:, :, i], through(one)[1], atol=1e-12)
    start = jaxlin.local_map(model, model.embed(tiny.IDS), source=("resid_pre", 1), position=4)
    np.testing.assert_allclose(jnp.moveaxis(stream, 0, 1), start.T @ u, atol=1e-12)
    assert not inside[0].any()
