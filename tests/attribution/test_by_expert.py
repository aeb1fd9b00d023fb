"""Contributions of experts: they sum to their MLPs, and are what the frozen model loses without each."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from random_llama import build
from random_mixture import CHOSEN, VARIANTS, F, mixture

import jaxlin
from jaxlin.attribution import experts

IDS, POSITION, TOKEN = [3, 1, 4, 1, 5, 9, 2, 6], 6, 7


def close(ours: Any, expected: Any) -> None:
    """Equal to rounding, relative to the largest number."""
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_sums(name: str, x64: None) -> None:
    """Of what is written at the position, and of all that is written, by all paths."""
    model = mixture(**VARIANTS[name])
    x = model.embed(IDS)
    attribution = jaxlin.attribute(model, x, TOKEN, position=POSITION)
    assert attribution.component_defect <= 1e-12
    direct = attribution.experts
    assert direct is not None
    assert (direct.shared is None) == ("shared" not in VARIANTS[name])
    assert direct.bias.any() == ("bias" in VARIANTS[name])
    shared = 0 if direct.shared is None else direct.shared
    close(direct.contribution.sum(1) + shared + direct.bias, attribution.mlp)
    np.testing.assert_allclose(direct.weight.sum(1), 1, rtol=1e-12)

    by_all_paths = experts(model, x, TOKEN, position=POSITION)
    assert by_all_paths.defect <= 1e-12
    close(by_all_paths.value, attribution.value)
    np.testing.assert_array_equal(by_all_paths.experts.index[:, POSITION], direct.index)
    assert not by_all_paths.experts.contribution[:, POSITION + 1 :].any()
    # What the last layer writes at the position is read by nothing else.
    close(by_all_paths.experts.contribution[-1, POSITION], direct.contribution[-1])


@pytest.mark.parametrize("rule", ["gate", "up", "half"])
@pytest.mark.parametrize("name", ["gated", "input"])
def test_without_an_expert(name: str, rule: str, x64: None) -> None:
    """The frozen model without one expert of one token is lower by the expert's contribution."""
    model = mixture(**VARIANTS[name])
    x = model.embed(IDS)
    contributions = experts(model, x, TOKEN, position=POSITION, rule=rule).experts.contribution
    frozen = jaxlin.freeze(model, x, rule=rule)

    @jax.jit
    def logit(layers: dict[str, Any]) -> jax.Array:
        return model.unembed(jaxlin.replay(model, replace(frozen, layers=layers), x)[POSITION])[TOKEN]

    for layer, token, i in ((0, 2, 1), (0, POSITION, 0), (1, POSITION, CHOSEN - 1)):
        neurons = slice(i * F, (i + 1) * F)
        factors = jax.tree.map(lambda a, at=(layer, token, neurons): a.at[at].set(0), frozen.layers["mlp.branches"])
        lost = logit(frozen.layers) - logit({**frozen.layers, "mlp.branches": factors})
        np.testing.assert_allclose(lost, contributions[layer, token, i], atol=1e-12)


def test_a_batch(x64: None) -> None:
    model = mixture(**VARIANTS["shared"])
    prompts = [IDS, IDS[::-1]]
    batch = jax.vmap(lambda x: jaxlin.attribute(model, x, TOKEN))(np.stack([model.embed(ids) for ids in prompts]))
    for i, ids in enumerate(prompts):
        one = jaxlin.attribute(model, model.embed(ids), TOKEN).experts
        assert one is not None
        close(batch.experts.contribution[i], one.contribution)
        np.testing.assert_array_equal(batch.experts.index[i], one.index)


def test_a_model_without_experts() -> None:
    model = build()
    x = model.embed(IDS)
    assert jaxlin.attribute(model, x, TOKEN).experts is None
    with pytest.raises(jaxlin.JaxlinError, match="expected a mixture of experts; found a Llama without any"):
        experts(model, x, TOKEN)
