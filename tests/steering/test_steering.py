"""Steering operators against dense formulas, their laws, and what they do to texts."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlin
from jaxlin.common.errors import TokenizerError
from jaxlin.nn.context import Context
from jaxlin.nn.prompt import PromptError
from jaxlin.nn.sites import SiteError
from jaxlin.steering import (
    Edit,
    SteeringError,
    ablate,
    add,
    dose_curve,
    edited,
    mean_difference,
    paper_code,
    paper_equation,
    swap,
    token_direction,
)
from jaxlin.steering.dose import continuation_logits, repetition
from jaxlin.steering.generation import Generation, generate, generate_batch

PHRASE = tiny.IDS[:7]
PROMPTS = [
    "Once upon a time there was a little",
    "The children went to the",
    "One day, the old man",
    "In the morning the girl",
    "My friend and I like to",
    "The house stood near the",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Shrink(Edit):
    """As the docstring of `Edit` says to write one."""

    def __call__(self, h: jax.Array, drive: jax.Array) -> jax.Array:
        return (1 - self.strength) * h


def vectors(count: int, d: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, d))


def every_kind(model: Any) -> list[Edit]:
    a, b = vectors(2)
    x = model.embed(PHRASE)
    return [
        add(("mlp_out", 1), a, 0.7),
        ablate(("resid_pre", 2), [a, b], where="new"),
        swap(("attn_out", 3), a, b),
        paper_equation(model, x, 1, 0.4),
        paper_code(model, x, 2, 0.8),
        add("final", b, 0.2, where="new"),
        add("embed", b, 0.2),
        add(("resid_post", 3), a, 0.3),
        add(("resid_mid", 1), b, 0.5, where=(2, 4)),
        Shrink(site=("mlp_out", 0), strength=0.5),
    ]


@pytest.fixture
def llama(checkpoint: Callable[[str], Path], x64: None) -> tuple[Any, Any]:
    return jaxlin.load(checkpoint("llama"), dtype="float64")


def test_zero_strength_does_nothing(llama: tuple[Any, Any]) -> None:
    model, _ = llama
    x = model.embed(tiny.IDS)
    plain = jax.jit(lambda model, x: model(x))(model, x)
    for edit in every_kind(model):
        np.testing.assert_array_equal(edited(model, x, [edit.at_strength(0.0)]), plain)
        assert float(jnp.abs(edited(model, x, [edit]) - plain).max()) > 1e-3


def test_laws() -> None:
    a, b, h = vectors(3)
    rows, none = jnp.asarray(vectors(5)), jnp.zeros((5, 0))
    project, exchange = ablate("embed", [a, b]), swap("embed", a, b)
    once = project(rows, none)
    np.testing.assert_allclose(project(once, none), once, atol=1e-6)
    np.testing.assert_allclose(once @ np.stack([a, b]).T, 0, atol=1e-5)
    np.testing.assert_allclose(ablate("embed", a)(rows, none) @ a, 0, atol=1e-5)
    np.testing.assert_allclose(exchange(exchange(rows, none), none), rows, atol=1e-5)
    # In the plane, coordinates are exchanged; what is orthogonal to it stays.
    left, right = a / np.linalg.norm(a), b / np.linalg.norm(b)
    np.testing.assert_allclose(
        exchange(jnp.asarray(2 * left + 5 * right)[None], none[:1])[0], 5 * left + 2 * right, atol=1e-5
    )
    np.testing.assert_allclose(exchange(once, none), once, atol=1e-5)
    # At other strengths they go part of the way, or further.
    for strength in (0.5, -1.5):
        taken = (rows @ np.linalg.qr(np.stack([a, b]).T)[0]) @ np.linalg.qr(np.stack([a, b]).T)[0].T
        part = ablate("embed", [a, b], strength)(rows, none)
        np.testing.assert_allclose(part, rows - strength * taken, atol=1e-5)
        part = swap("embed", a, b, strength)(jnp.asarray(2 * left + 5 * right)[None], none[:1])[0]
        np.testing.assert_allclose(part, (2 + 3 * strength) * left + (5 - 3 * strength) * right, atol=1e-5)
    pushed = add("embed", 100 * a, 0.5)(jnp.asarray(h)[None], none[:1])[0]
    np.testing.assert_allclose(pushed, h + 0.5 * np.linalg.norm(h) * left, atol=1e-5)


@functools.partial(jax.jit, static_argnames=("start", "stop"))
def through(model: Any, x: Any, start: int = 0, stop: int | None = None) -> Any:
    """The stream, from before one block to before another."""
    return model.scan(x, lambda _: Context(), start=start, stop=stop)[0]


def dense(model: Any, x: Any, layer: int, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    """C of every position from the dense map; and J."""
    jacobian = np.asarray(jaxlin.local_map(model, x, target=("resid_post", layer)).jacobian())
    turns = [jacobian[:, k % x.shape[0]] @ e for k, e in enumerate(np.asarray(tokens))]
    return np.cumsum(turns, axis=0), jacobian


@pytest.mark.parametrize("name", ["gemma2", "phi"])
def test_paper_equation(name: str, checkpoint: Callable[[str], Path], x64: None) -> None:
    model, _ = jaxlin.load(checkpoint(name), dtype="float64")
    x, new = model.embed(PHRASE), model.embed(tiny.IDS)
    edit = paper_equation(model, x, 2, 1 - 0.6)
    c, jacobian = dense(model, x, 2, new)
    np.testing.assert_allclose(edit.drive(new, jnp.arange(len(new)), jnp.zeros(64)), c, atol=1e-12)
    stream = through(model, new, stop=3)
    wanted = stream.at[-1].set(0.6 * stream[-1] + 0.4 * c[-1])
    rest = through(model, wanted, start=3)
    expected = model.norm(rest, Context())
    np.testing.assert_allclose(edited(model, new, [edit]), expected, atol=1e-12 * np.abs(expected).max())
    # A text as long as the phrase: eq. 16 letter for letter.
    short = new[5:12]
    again = np.einsum("dte,te->d", jacobian, short)
    np.testing.assert_allclose(edit.drive(short, jnp.arange(7), jnp.zeros(64))[-1], again, atol=1e-12)
    changed = np.abs(edited(model, x, [edit]) - model(x)).max()
    assert (changed < 1e-12) == (name != "phi")  # the phrase itself: nothing, but for b


def test_paper_code(llama: tuple[Any, Any]) -> None:
    model, _ = llama
    x, new = model.embed(PHRASE), model.embed(tiny.IDS)
    edit = paper_code(model, x, 2, 0.5)
    assert (edit.site, edit.where) == (("resid_pre", 1), "all")
    c, _ = dense(model, x, 2, new)
    state = through(model, x, stop=3)
    c = c / np.sqrt(np.mean(state[-1] ** 2) + model.config.norm_eps) * np.asarray(model.norm.weight[...], float)
    np.testing.assert_allclose(edit.drive(new, jnp.arange(len(new)), jnp.zeros(64)), c, atol=1e-12)
    h = np.asarray(through(model, new, stop=1))
    size, length = (np.linalg.norm(z, axis=-1, keepdims=True) for z in (h, c))
    rest = through(model, jnp.asarray(h + 0.5 * size * c / (2 * length)), start=1)
    expected = model.norm(rest, Context())
    np.testing.assert_allclose(edited(model, new, [edit]), expected, atol=1e-12 * np.abs(expected).max())


def test_cached_steering_is_uncached_steering(checkpoint: Callable[[str], Path], x64: None) -> None:
    model, tokenizer = jaxlin.load(checkpoint("gemma2"), dtype="float64")
    edits = every_kind(model)
    for prompt in (tiny.IDS, PHRASE[:2]):
        found = generate(model, tokenizer, prompt, 30, stop_token_ids=(), edits=edits, return_logits=True)
        assert found.logits is not None
        rows = continuation_logits(model, prompt, found.tokens, edits)
        np.testing.assert_allclose(found.logits, rows, atol=1e-12 * np.abs(rows).max())
        np.testing.assert_array_equal(found.tokens, np.argmax(rows, axis=-1))
        whole = model.unembed(edited(model, model.embed(prompt + found.tokens), edits, prompt=len(prompt)))
        np.testing.assert_allclose(whole[len(prompt) - 1 : -1], rows, atol=1e-12 * np.abs(rows).max())


def test_order_at_one_site(llama: tuple[Any, Any]) -> None:
    """Edits at one site are made in the order given; the stream between two blocks has two names and is one site."""
    model, _ = llama
    a, b = vectors(2)
    x = model.embed(tiny.IDS)
    push, project = add(("resid_post", 1), a, 1.0), ablate(("resid_pre", 2), [a, b])
    only = edited(model, x, [project])
    np.testing.assert_allclose(edited(model, x, [push, project]), only, atol=1e-12)
    assert float(jnp.abs(edited(model, x, [project, push]) - only).max()) > 1e-3


def test_mean_difference(llama: tuple[Any, Any]) -> None:
    model, _ = llama
    towards, away = [tiny.IDS[:5], tiny.IDS[:9]], [tiny.IDS[3:8]]
    values = [np.asarray(through(model, model.embed(ids), stop=2)[-1]) for ids in
              (*towards, *away)]  # fmt: skip
    expected = (values[0] + values[1]) / 2 - values[2]
    np.testing.assert_allclose(mean_difference(model, towards, away, ("resid_post", 1)), expected, atol=1e-12)
    outputs = [np.asarray(model(model.embed(ids))[-1]) for ids in (*towards, *away)]
    final = mean_difference(model, towards, away, "final")
    np.testing.assert_allclose(final, (outputs[0] + outputs[1]) / 2 - outputs[2], atol=1e-12)
    with pytest.raises(SteeringError, match="on both sides"):
        mean_difference(model, towards, [], "final")


def test_what_an_edit_shows() -> None:
    """No vector number by number."""
    assert repr(add(("resid_post", 1), np.ones(64), 0.3)) == (
        "Add(site=('resid_post', 1), strength=0.3, where='all', direction of shape (64,))"
    )


def test_errors(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    a, b = vectors(2)
    x = model.embed(PHRASE)
    with pytest.raises(PromptError, match="at most 64 tokens"):
        paper_equation(model, model.embed([3] * 65), 1)
    for make in (paper_equation, paper_code):
        with pytest.raises(SiteError, match=r"layer in 0\.\.3; found 9"):
            make(model, x, 9)
    with pytest.raises(SiteError, match="layer 0"):
        paper_code(model, x, 0)
    for edit, error, words in (
        ("rotate", SteeringError, "add, apply or ablate among them, give; found 'rotate'"),
        (add(("resid_post", 7), a), SiteError, "found 7"),
        (dataclasses.replace(add("embed", a), site="attn"), SiteError, "'attn'"),
        (add("embed", a[:5]), SteeringError, "Add, direction: expected 64 features.*found 5"),
        (ablate("embed", a[:5]), SteeringError, "Ablate, basis: expected 64.*found 5"),
        (dataclasses.replace(add("embed", a), where="some"), SteeringError, "where.*'some'"),
        (dataclasses.replace(add("embed", a), where=(1, -1)), SteeringError, r"where.*\(1, -1\)"),
    ):
        with pytest.raises(error, match=words):
            generate(model, tokenizer, [5], 4, edits=[edit])
    for where in ("some", -1, [], [0.5], True, {3}):
        with pytest.raises(SteeringError, match='where: expected "all", "new" or positions'):
            add("embed", a, where=where)
    with pytest.raises(SteeringError, match=r"positions in 0\.\.6; found 7"):
        edited(model, model.embed(PHRASE), [add("embed", a, where=len(PHRASE))])
    for build in (lambda: add("embed", 0 * a), lambda: add("embed", [a]), lambda: ablate("embed", [a, 0 * b])):
        with pytest.raises(SteeringError, match="finite, positive length"):
            build()
    for build in (lambda: swap("embed", a, -2 * a), lambda: ablate("embed", [a, b, a + b])):
        with pytest.raises(SteeringError, match="linearly independent; found fewer"):
            build()
    with pytest.raises(TokenizerError, match="expected one token"):
        dose_curve(model, tokenizer, add("embed", a), [[5]], "two words", [1.0])
    with pytest.raises(TokenizerError, match="expected the id of a word; found 128"):
        dose_curve(model, tokenizer, add("embed", a), [[5]], 128, [1.0])
    with pytest.raises(SteeringError, match="found 0 and"):
        dose_curve(model, tokenizer, add("embed", a), [], "a", [1.0])
    with pytest.raises(SteeringError, match="finite strengths"):
        dose_curve(model, tokenizer, add("embed", a), [[5]], "a", [float("inf")])


def test_at_some_positions(llama: tuple[Any, Any]) -> None:
    """Nothing before them is touched; all of them, or the last, are what the words for them say."""
    model, _ = llama
    x, a = model.embed(tiny.IDS), vectors(1)[0]
    last = len(x) - 1

    def at(where: Any) -> np.ndarray:
        return np.asarray(edited(model, x, [add(("resid_post", 1), a, where=where)]))

    plain = np.asarray(jax.jit(lambda model, x: model(x))(model, x))
    some = at([3, 7])
    np.testing.assert_array_equal(some[:3], plain[:3])
    assert np.abs(some[3:] - plain[3:]).max(axis=1).min() > 1e-6
    np.testing.assert_array_equal(at(last), at("new"))
    np.testing.assert_array_equal(at(range(last + 1)), at("all"))
    once = edited(model, x, [add(("resid_post", 1), a, where=3), add(("resid_post", 1), a, where=np.int64(7))])
    np.testing.assert_allclose(once, some, atol=1e-12)


def test_strength_is_an_argument() -> None:
    """Another strength is no other program."""
    model, tokenizer = jaxlin.load()
    edit = add(("resid_post", 1), vectors(1, 192)[0])
    compiled = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("logging.Logger.handle", lambda self, record: compiled.append(record.getMessage()))
        for strength in (0.1, 0.2):
            generate(model, tokenizer, "The cat", 7, edits=[edit.at_strength(strength)])
    assert sum("Compiling" in message and "_grow" in message for message in compiled) == 1


def test_repetition() -> None:
    assert repetition([1, 2]) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 12) == 1 - 1 / 10
    assert repetition([1, 2, 3, 1, 2, 3]) == 1 / 4


def logp(found: Generation) -> float:
    assert found.logits is not None
    rows = np.asarray(jax.nn.log_softmax(jnp.asarray(found.logits)))
    return float(np.mean([row[token] for row, token in zip(rows, found.tokens, strict=True)]))


def test_a_token_that_is_none() -> None:
    model, _ = jaxlin.load()
    for wrong in (model.config.vocab_size, -1, 10**6):
        with pytest.raises(jaxlin.JaxlinError, match=r"Token: expected an id in 0\.\.2047; found"):
            token_direction(model, wrong)


def test_dose_curve_on_the_small_model() -> None:
    """More strength, more cats: by the word's own direction, and by the difference between prompts."""
    model, tokenizer = jaxlin.load()
    towards = [tokenizer.encode(text) for text in ("The cat", "We saw the cat", "I love the cat", "We like the cat")]
    away = [tokenizer.encode(text) for text in ("The house", "We saw the house", "I love the tree", "We like the sea")]
    site = ("resid_post", 1)
    strengths = [0.0, 0.3, 0.6]
    for along in (
        token_direction(model, tokenizer.to_single_token(" cat")),
        mean_difference(model, towards, away, site),
    ):
        curve = dose_curve(model, tokenizer, add(site, along), PROMPTS, "cat", strengths, max_new_tokens=24)
        assert curve.target_rate[0] == 0
        assert curve.target_rate[-1] == 1
        assert (np.diff(curve.target_rate) >= 0).all()
        assert (np.diff(curve.target_probability) > 0).all()
        assert (np.diff(curve.kl) > 0).all()
        assert abs(curve.kl[0]) < 1e-4
        plain = generate_batch(model, tokenizer, PROMPTS, 24, return_logits=True)
        assert curve.texts[0] == [found.text for found in plain]
        assert all(("cat" in text.lower()) for text in curve.texts[-1])
        assert json.loads(json.dumps(curve.to_dict()))["target_rate"] == curve.target_rate.tolist()
        chosen = [logp(found) for found in plain]
        np.testing.assert_allclose(curve.surprise[0], -np.mean(chosen), rtol=1e-4)
    check_costs(model, tokenizer, add(site, along), curve)


def check_costs(model: Any, tokenizer: Any, edit: Edit, curve: Any) -> None:
    """What the last dose costs, from both models' distributions after the same prefixes."""
    texts = generate_batch(
        model, tokenizer, PROMPTS, 24, edits=[edit.at_strength(curve.strengths[-1])], return_logits=True
    )
    cat = tokenizer.to_single_token(" cat")
    rows = []
    for text in texts:
        both = text.logits, continuation_logits(model, text.prompt, text.tokens)
        steered, plain = (np.exp(np.asarray(jax.nn.log_softmax(jnp.asarray(logits)), np.float64)) for logits in both)
        divergence = np.sum(steered * np.log(steered / plain), axis=1)
        odd = [-np.log(row[token]) for row, token in zip(plain, text.tokens, strict=True)]
        rows.append([np.mean(divergence), np.mean(odd), np.mean(steered[:, cat]), repetition(text.tokens)])
    kl, surprise, probability, repeated = np.mean(rows, axis=0)
    np.testing.assert_allclose(curve.kl[-1], kl, rtol=1e-4)
    np.testing.assert_allclose(curve.surprise[-1], surprise, rtol=1e-4)
    np.testing.assert_allclose(curve.target_probability[-1], probability, rtol=1e-4)
    np.testing.assert_allclose(curve.repetition[-1], repeated, rtol=1e-12)
