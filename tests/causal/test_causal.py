"""Causal checks of the shipped small model: against forward passes one by one, and what they ought to find."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tiny

import jaxlin
from jaxlin.causal import deletion, removal, validity
from jaxlin.causal.effects import spearman
from jaxlin.linearize.linalg.triplets import SVD

PROMPT = "The bridge out of the town is the"
Small = tuple[jaxlin.Decoder, jax.Array, int]


@pytest.fixture(scope="module")
def small() -> Small:
    """The model, the prompt's embeddings and the likeliest next token."""
    model, tokenizer = jaxlin.load()
    x = model.embed(tokenizer.encode(PROMPT))
    return model, x, int(predict(model, x).argmax())


@pytest.fixture(scope="module")
def triplets(small: Small) -> SVD:
    """The leading ones."""
    return jaxlin.local_map(*small[:2]).svd(16)


@jax.jit
def states(model: jaxlin.Decoder, x: jax.Array) -> jax.Array:
    """After the final norm."""
    return model(x)


def predict(model: jaxlin.Decoder, x: jax.Array, position: int = -1) -> np.ndarray:
    """The logits."""
    return np.asarray(model.unembed(states(model, x)[position]), np.float64)


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """SciPy's rank correlation."""
    result: Any = scipy.stats.spearmanr(a, b)
    return result.statistic


def divergence(before: np.ndarray, after: np.ndarray) -> float:
    """Between the predictions of two rows of logits, in nats."""
    p, q = scipy.special.softmax(before), scipy.special.softmax(after)
    return float(scipy.stats.entropy(p, q))


def test_deletion_is_the_model_without_each_token(small: Small) -> None:
    model, x, token = small
    found = deletion(model, x, token)
    whole = predict(model, x)[token]
    np.testing.assert_allclose(found.value, whole, rtol=1e-5)
    for i in (0, 3, len(x) - 1):
        rest = jnp.concatenate([x[:i], x[i + 1 :]])
        np.testing.assert_allclose(found.effects[i], whole - predict(model, rest)[token], atol=1e-4)
    np.testing.assert_array_equal(found.contributions, jaxlin.attribute(model, x, token).tokens)
    expected = reference(found.effects, found.contributions)
    np.testing.assert_allclose(found.rank_correlation, expected, atol=1e-12)
    expected = reference(found.effects[1:], found.contributions[1:])
    np.testing.assert_allclose(found.rank_correlation_without_first, expected, atol=1e-12)


def test_learned_positions_move(checkpoint: Callable[[str], Path], x64: None) -> None:
    """The tokens after a deleted one get the embeddings of other positions, and so does a token that replaces one."""
    model, _ = jaxlin.load(checkpoint("gpt2"), dtype="float64")
    ids = tiny.IDS[:8]
    found = deletion(model, model.embed(ids), 9)
    for i in (0, 3, 7):
        rest = predict(model, model.embed(ids[:i] + ids[i + 1 :]))[9]
        np.testing.assert_allclose(found.effects[i], found.value - rest, atol=1e-12)
    replaced = validity(model, model.embed(ids), model.embed([50, ids[4]]))
    assert replaced.distance[4, 1] <= 1e-14
    other = model.embed([*ids[:4], 50, *ids[5:]])
    np.testing.assert_allclose(replaced.distance[4, 0], np.linalg.norm(other - model.embed(ids)), rtol=1e-12)


def test_deletion_at_an_earlier_position(small: Small) -> None:
    model, x, token = small
    found, alone = deletion(model, x, (token, 7), position=4), deletion(model, x[:5], (token, 7))
    assert found.effects.shape == found.contributions.shape == (5,)
    np.testing.assert_allclose(found.effects, alone.effects, atol=1e-4)
    with pytest.raises(jaxlin.JaxlinError, match="a token before it"):
        deletion(model, x, token, position=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_removal_is_the_model_without_the_directions(side: Any, small: Small, triplets: SVD) -> None:
    model, x, token = small
    found = removal(model, x, triplets, token, side=side, k=3)
    if side == "right":
        v = triplets.v[:3].reshape(3, -1)
        part = (v.T @ (v @ np.asarray(x).ravel())).reshape(x.shape)
        after = predict(model, x - part)
    else:
        u, output = triplets.u[:, :3], np.asarray(states(model, x)[-1])
        part = u @ (u.T @ output)
        after = np.asarray(model.unembed(jnp.asarray(output - part)), np.float64)
    before = predict(model, x)
    np.testing.assert_allclose(found.size, np.linalg.norm(part), rtol=1e-4)
    np.testing.assert_allclose(found.kl, divergence(before, after), rtol=1e-3)
    np.testing.assert_allclose(found.change, after[token] - before[token], atol=1e-3)
    assert found.random_kl.shape == found.random_change.shape == (16,)
    assert (found.random_kl > 0).all()


def test_random_removals_have_the_same_norm(small: Small, triplets: SVD) -> None:
    # On the left what is removed can be read off the logits: the unembedding is linear.
    model, x, _ = small
    u = np.asarray(jax.random.normal(jax.random.key(5), x.shape[1:]))
    found = removal(model, x, triplets, u, side="left", k=2, samples=2000)
    assert np.abs(found.random_change).max() <= found.size * np.linalg.norm(u)
    expected = found.size * np.linalg.norm(u) / len(u) ** 0.5
    np.testing.assert_allclose(np.sqrt(np.mean(found.random_change**2)), expected, rtol=0.1)
    again = removal(model, x, triplets, u, side="left", k=2, samples=2000)
    other = removal(model, x, triplets, u, side="left", k=2, samples=2000, seed=1)
    np.testing.assert_array_equal(found.random_kl, again.random_kl)
    assert np.abs(found.random_kl - other.random_kl).max() > 0


def test_the_leading_output_directions_carry_the_prediction(small: Small, triplets: SVD) -> None:
    model, x, token = small
    found = removal(model, x, triplets, token, side="left")
    assert found.kl > np.max(found.random_kl)


def test_validity_of_a_swap(small: Small) -> None:
    model, x, _ = small
    substitutes = jnp.concatenate([x[3:4], model.embed([50, 51])])
    found = validity(model, x, substitutes)
    assert found.distance.shape == found.error.shape == found.unchanged.shape == (len(x), 3)
    # A token for itself: the map is exact there.
    assert found.distance[3, 0] == 0
    assert found.error[3, 0] <= 3e-6
    assert found.unchanged[3, 0] <= 1e-6
    lmap = jaxlin.local_map(model, x)
    jacobian = np.asarray(lmap.jacobian(), np.float64)
    swapped = x.at[2].set(substitutes[1])
    reached = np.asarray(states(model, swapped)[-1], np.float64)
    predicted = np.einsum("dte,te->d", jacobian, np.asarray(swapped)) + np.asarray(lmap.bias)
    norm = np.linalg.norm
    np.testing.assert_allclose(found.error[2, 1], norm(predicted - reached) / norm(reached), rtol=1e-4)
    np.testing.assert_allclose(found.unchanged[2, 1], norm(lmap.output - reached) / norm(reached), rtol=1e-4)
    np.testing.assert_allclose(found.distance[2, 1], norm(substitutes[1] - x[2]), rtol=1e-5)
    near = validity(model, x, substitutes, fraction=1e-2)
    np.testing.assert_allclose(near.distance, found.distance / 100, rtol=1e-3)
    assert near.error.max() < 0.1 * found.error.max()


def test_validity_with_biases_at_an_earlier_position(checkpoint: Callable[[str], Path], x64: None) -> None:
    model, _ = jaxlin.load(checkpoint("phi"), dtype="float64")
    x = model.embed([5, 6, 7, 8])
    found = validity(model, x, x[1:2], position=2)
    assert found.error.shape == (3, 1)
    assert found.error[1, 0] <= 1e-13 < found.error[0, 0]


def test_rank_correlation() -> None:
    a, b = np.array([3.0, 1.0, 4.0, 1.0, 5.0]), np.array([2.0, 7.0, 1.0, 8.0, 2.0])
    np.testing.assert_allclose(spearman(a, b), reference(a, b), atol=1e-15)
    assert spearman(a, a) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert np.isnan(spearman(a, np.ones(5)))
    assert np.isnan(spearman(a[:0], a[:0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 17}, r"1\.\.16"),
        ({"k": 0}, r"1\.\.16"),
        ({"target": 10**6}, "Target: expected"),
        ({"position": 99}, "Position: expected"),
    ],
)
def test_what_is_not_there_is_refused(options: dict[str, Any], message: str, small: Small, triplets: SVD) -> None:
    model, x, token = small
    with pytest.raises(jaxlin.JaxlinError, match=message):
        removal(model, x, triplets, **{"target": token, **options})


def test_deletion_where_later_tokens_change_the_rope(checkpoint: Callable[[str], Path]) -> None:
    """Rotation follows the length in a prompt that is longer than the trained one; later tokens are left out of it."""
    model, _ = jaxlin.load(checkpoint("phi3, longrope, long"))
    x = model.embed(list(range(40)))
    found, alone = deletion(model, x, 7, position=20), deletion(model, x[:21], 7)
    np.testing.assert_array_equal(found.effects, alone.effects)
    assert found.value == alone.value


def test_triplets_of_another_prompt_are_refused(small: Small, triplets: SVD) -> None:
    model, x, token = small
    with pytest.raises(jaxlin.JaxlinError, match="as the prompt's"):
        removal(model, x[1:], triplets, token)
