"""What the streams of the tokens contribute, layer by layer."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlin
from jaxlin.attribution.layer_streams import stream_contributions
from jaxlin.linearize.frozen import record
from jaxlin.nn.context import Context
from jaxlin.nn.freeze_modes import Detach

Checkpoint = Callable[[str], Path]
VARIANTS = ("gemma2", "phi")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_layer_sums_to_the_logit(name: str, checkpoint: Checkpoint, x64: None) -> None:
    model, _ = jaxlin.load(checkpoint(name), dtype="float64")
    x = model.embed(tiny.IDS)
    for position, target in ((-1, 9), (2, (9, 11))):
        found, whole = (
            stream_contributions(model, x, target, position=position),
            jaxlin.attribute(model, x, target, position=position),
        )
        assert found.tokens.shape == (model.config.num_hidden_layers + 1, len(tiny.IDS))
        np.testing.assert_allclose(found.tokens.sum(axis=1) + found.bias, whole.value, atol=1e-12)
        np.testing.assert_allclose(found.tokens[0], whole.tokens, atol=1e-12)
        np.testing.assert_allclose(found.bias[[0, -1]], [whole.bias, whole.final_bias], atol=1e-12)
        assert np.count_nonzero(found.tokens[-1]) == 1
        assert found.defect <= 1e-12


@pytest.mark.parametrize("name", ["llama, biases", "phi"])
def test_each_is_the_derivative_of_the_rest_of_the_model(name: str, checkpoint: Checkpoint, x64: None) -> None:
    """By forward derivatives of the detached blocks from a layer on."""
    model, _ = jaxlin.load(checkpoint(name), linearize=True, dtype="float64")
    x = model.embed(tiny.IDS)
    u = np.linspace(-1, 1, x.shape[1])
    found = stream_contributions(model, x, u, position=3)
    entering = record(model, x, ("resid_pre",)).sites["resid_pre"]

    @functools.partial(jax.jit, static_argnames="layer")
    def rest(model: jaxlin.Decoder, stream: jax.Array, layer: int) -> jax.Array:
        """The blocks from `layer` on."""
        x, _ = model.scan(stream, lambda _: Context(Detach(model.rule)), start=layer)
        return jnp.dot(u, model.norm(x, Context(Detach(model.rule)))[3])

    for layer, stream in enumerate(entering):
        # One token at a time: each row of the identity keeps one.
        alone = jnp.einsum("st,td->std", jnp.eye(len(x)), stream)
        slope = jax.vmap(lambda v, s=stream, n=layer: jax.jvp(lambda s: rest(model, s, n), (s,), (v,))[1])(alone)
        np.testing.assert_allclose(found.tokens[layer], slope, atol=1e-12)


def test_without_biases_there_are_none(x64: None) -> None:
    # In float64: this logit is a thirtieth of the products that cancel in it; in float32 the defect depends on the
    # processor.
    model, _ = jaxlin.load(dtype="float64")
    found = stream_contributions(model, model.embed([3, 4, 5]), 9)
    assert not found.bias.any()
    assert found.defect <= 1e-14
