"""The slopes of activations against transformers' activations."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from jaxlin.nn.layers import SLOPES
from jaxlin.porting.fields import ACTIVATIONS

POINTS = np.concatenate([np.linspace(-8, 8, 161), [-1e-30, 1e-30, -30, 30]])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_slope_times_its_argument(name: str, x64: None) -> None:
    expected = ACT2FN[name](torch.tensor(POINTS)).numpy()
    x = jnp.asarray(POINTS)
    np.testing.assert_allclose(x * SLOPES[ACTIVATIONS[name]](x), expected, atol=1e-6 if name == "gelu_fast" else 1e-12)


def test_every_slope_is_named() -> None:
    assert set(ACTIVATIONS.values()) == set(SLOPES)
