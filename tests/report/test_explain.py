"""What a person sees: the explanation, the command, its errors."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import PROMPT, jaxlin_command

import jaxlin
from jaxlin.linearize.linalg.triplets import effective_rank, stable_rank, svd
from jaxlin.spectrum.words import nearest_embeddings, promoted_tokens


def test_explanation_of_the_small_model() -> None:
    model, tokenizer = jaxlin.load()
    found = jaxlin.explain(model, tokenizer, PROMPT, top=6)
    assert "".join(found.tokens).endswith(PROMPT)
    assert found.residual <= 3e-6
    assert found.defect <= 1e-5
    np.testing.assert_allclose(sum(found.contributions) + found.bias, found.logit, atol=1e-4)
    assert found.target == found.next_tokens[0][0]
    x = model.embed(tokenizer.encode(PROMPT))
    logits = np.asarray(model.unembed(model(x)[-1]), np.float64)
    np.testing.assert_allclose(found.logit, logits.max(), rtol=1e-5)
    np.testing.assert_allclose(found.next_tokens[0][1], np.exp(logits.max()) / np.exp(logits).sum(), rtol=1e-5)
    values = [triplet.value for triplet in found.triplets]
    assert values == sorted(values, reverse=True)
    assert len(values) == 6
    assert found.ranks is not None
    assert 1 <= found.ranks.stable <= found.ranks.effective
    assert all(abs(sum(share for _, share, _ in triplet.reads)) <= 1 + 1e-6 for triplet in found.triplets)


def test_target_and_position() -> None:
    model, tokenizer = jaxlin.load()
    found = jaxlin.explain(model, tokenizer, PROMPT, position=2, target="the")
    assert found.target.strip() == "the"
    assert found.position == 2
    assert not any(found.contributions[3:])
    with pytest.raises(jaxlin.JaxlinError, match="one token"):
        jaxlin.explain(model, tokenizer, PROMPT, target="antidisestablishmentarianism")


def test_ways_to_a_spectrum() -> None:
    """By products, the same words; with none, nothing but it is missing."""
    model, tokenizer = jaxlin.load()
    ids = tokenizer.encode(PROMPT)
    dense, krylov, none = (
        jaxlin.explain(model, tokenizer, ids, position=-2, top=3, spectrum=how, with_detail=True)
        for how in ("dense", "krylov", "none")
    )
    for one, other in zip(dense.triplets, krylov.triplets, strict=True):
        np.testing.assert_allclose(other.value, one.value, rtol=1e-4)
        assert (other.promotes, other.demotes) == (one.promotes, one.demotes)
        shares = ([share for _, share, _ in triplet.reads] for triplet in (other, one))
        np.testing.assert_allclose(*shares, atol=1e-3)
    assert dense.ranks is not None
    assert none.triplets == []
    for found in (krylov, none):
        assert (found.ranks, found.ranks_without_first) == (None, None)
        assert found.residual <= 3e-6
        assert found.next_tokens == dense.next_tokens
        np.testing.assert_allclose(found.contributions, dense.contributions, rtol=1e-5)
    assert krylov.detail is not None
    np.testing.assert_allclose(krylov.detail.spectrum, [triplet.value for triplet in krylov.triplets])
    with pytest.raises(jaxlin.JaxlinError, match="dense, krylov, none; found 'all'"):
        jaxlin.explain(model, tokenizer, PROMPT, spectrum="all")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_have_no_spectrum(dtype: str) -> None:
    model, tokenizer = jaxlin.load(dtype=dtype)
    for how in ("dense", "krylov"):
        with pytest.raises(jaxlin.JaxlinError, match=f'found {dtype}. Load the model with dtype="float32"'):
            jaxlin.explain(model, tokenizer, PROMPT, spectrum=how)
    assert jaxlin.explain(model, tokenizer, PROMPT, spectrum="none").dtype == dtype


def test_rows_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = jaxlin.load()
    monkeypatch.setattr(sys.modules["jaxlin.report.build"], "host_memory", lambda: 10 * 192 * 8 * 192 * 4)
    eight = tokenizer.encode(PROMPT)[:8]
    jaxlin.explain(model, tokenizer, eight)
    with pytest.raises(jaxlin.JaxlinError, match=r'0\.0 GB for all rows .* Use "krylov"'):
        jaxlin.explain(model, tokenizer, [*eight, 5])
    jaxlin.explain(model, tokenizer, [*eight, 5], spectrum="krylov")


MEASURE = """
import re
import numpy as np
from jaxlin.report.build import COPIES
from jaxlin.linearize.linalg.triplets import svd
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
jacobian = np.random.default_rng(0).standard_normal((256, 512, 256), np.float32)
svd(jacobian[:, :2])
before = peak()
svd(jacobian)
np.linalg.svd(jacobian[:, 1:].reshape(256, -1), compute_uv=False)
print((peak() - before) / jacobian.nbytes + 1, COPIES)
"""


def test_what_singular_vectors_take_in_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    taken, asked = map(float, done.stdout.split())
    assert asked / 2 < taken <= asked


def test_the_prompt_as_ids_and_without_bos() -> None:
    model, tokenizer = jaxlin.load()
    ids = tokenizer.encode(PROMPT, prepend_bos=False)
    assert ids[0] != tokenizer.bos_id
    plain = jaxlin.explain(model, tokenizer, ids, spectrum="none")
    assert jaxlin.explain(model, tokenizer, PROMPT, prepend_bos=False, spectrum="none") == plain
    assert len(jaxlin.explain(model, tokenizer, PROMPT, spectrum="none").tokens) == len(ids) + 1
    with pytest.raises(jaxlin.JaxlinError, match="one token or more"):
        jaxlin.explain(model, tokenizer, [])
    for how in ("dense", "krylov", "none"):
        with pytest.raises(jaxlin.JaxlinError, match=r"words in 1\.\.2048; found 2049"):
            jaxlin.explain(model, tokenizer, ids, top=2049, spectrum=how)


def test_one_word_over_another() -> None:
    model, tokenizer = jaxlin.load()
    x = model.embed(tokenizer.encode(PROMPT))
    most, only = (tokenizer.to_single_token(word) for word in (" most", " only"))
    found = jaxlin.explain(model, tokenizer, PROMPT, target="most", over="only", spectrum="none", with_detail=True)
    assert (found.target, found.over) == (" most", " only")
    expected = jaxlin.attribute(model, x, (most, only))
    assert found.logit == expected.value
    np.testing.assert_array_equal(found.contributions, expected.tokens)
    assert found.detail is not None
    np.testing.assert_allclose(np.sum(found.detail.streams, axis=1), found.logit, atol=1e-4)
    by_id = jaxlin.explain(model, tokenizer, PROMPT, target=most, over=only, spectrum="none", with_detail=True)
    assert by_id == found
    assert jaxlin.explain(model, tokenizer, PROMPT, target=most, spectrum="none").over is None
    for over, message in (("most", "another word than the target"), (10**6, r"token ids in 0\.\.")):
        with pytest.raises(jaxlin.JaxlinError, match=message):
            jaxlin.explain(model, tokenizer, PROMPT, target="most", over=over)


def test_spectrum_of_the_map() -> None:
    model, tokenizer = jaxlin.load()
    lmap = jaxlin.local_map(model, model.embed(tokenizer.encode(PROMPT)))
    dense = np.asarray(lmap.jacobian())
    u, s, v = lmap.svd(k=5)
    for i in range(5):
        np.testing.assert_allclose(lmap @ v[i], s[i] * u[:, i], atol=1e-4 * s[0])
        np.testing.assert_allclose(lmap.T @ u[:, i], s[i] * v[i], atol=1e-4 * s[0])
    np.testing.assert_allclose(stable_rank(svd(dense).s), np.sum(dense**2) / s[0] ** 2, rtol=1e-4)
    for k in (0, 10_000):
        with pytest.raises(jaxlin.JaxlinError, match=r"k in 1\.\."):
            lmap.svd(k=k)


def test_ranks() -> None:
    assert stable_rank(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(np.array([5.0, 5.0, 0.0])) == pytest.approx(2)
    assert effective_rank(np.array([1.0, 0.0])) == pytest.approx(1)


def test_words() -> None:
    model, tokenizer = jaxlin.load()
    bridge = tokenizer.to_single_token(" the")
    x = model.embed([bridge])
    near = nearest_embeddings(model, 3 * x[0], 4)
    assert int(near.ids[0]) == bridge
    assert float(near.scores[0]) == pytest.approx(1, abs=1e-5)
    logits = model.unembed(x[0])
    up, down = promoted_tokens(model, x[0], 4), promoted_tokens(model, -x[0], 4)
    assert int(up.ids[0]) == int(np.argmax(logits))
    assert int(down.ids[0]) == int(np.argmin(logits))


def test_the_bias_of_the_unembedding_promotes_nothing(checkpoint: Callable[[str], Path]) -> None:
    """A direction reads the rows of the unembedding alone; with the bias, all short ones would promote its tokens."""
    model, _ = jaxlin.load(checkpoint("phi"))
    u = 1e-2 * np.linspace(-1, 1, model.config.hidden_size, dtype=np.float32)
    along = np.asarray(model.lm_head.weight[...]) @ u
    assert np.argmax(along) != np.argmax(along + np.asarray(model.lm_head.bias[...]))
    found = promoted_tokens(model, np.stack([u, -u]), 4)
    np.testing.assert_array_equal(found.ids, [np.argsort(-along)[:4], np.argsort(along)[:4]])
    np.testing.assert_allclose(found.scores, [np.sort(along)[:-5:-1], np.sort(-along)[:-5:-1]], rtol=1e-4)


def test_embeddings_of_zero_are_never_near() -> None:
    import jax

    model, _ = jaxlin.load()
    path = lambda keys: ".".join(getattr(key, "name", "") for key in keys)
    zeroed = jax.tree_util.tree_map_with_path(
        lambda keys, a: a.at[:50].set(0) if path(keys).startswith("embed_tokens") else a, model
    )
    near = nearest_embeddings(zeroed, zeroed.embed([60])[0], 2000)
    assert np.isfinite(near.scores[:-50]).all()
    assert not set(range(50)) & set(np.asarray(near.ids[: zeroed.config.vocab_size - 50]).tolist())


class TestAttribution:
    """Contributions sum to what they explain."""

    @pytest.mark.parametrize("name", ["gemma2", "phi"])
    def test_they_sum_to_the_logit(self, name: str, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint(name))
        x = model.embed([5, 6, 7, 8])
        logits = np.asarray(model.unembed(model(x)[-1]))
        one, pair = jaxlin.attribute(model, x, 9), jaxlin.attribute(model, x, (9, 11))
        np.testing.assert_allclose(one.value, logits[9], atol=1e-5)
        np.testing.assert_allclose(pair.value, logits[9] - logits[11], atol=1e-5)
        for found in (one, pair):
            assert found.defect <= 1e-5
            np.testing.assert_allclose(found.tokens.sum() + found.bias, found.value, atol=1e-5)

    def test_a_direction(self, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint("llama"))
        x = model.embed([5, 6, 7])
        u = np.linspace(-1, 1, 64).astype(np.float32)
        found = jaxlin.attribute(model, x, u, position=1)
        np.testing.assert_allclose(found.value, u @ np.asarray(model(x)[1]), rtol=1e-4)
        assert found.defect <= 1e-5

    @pytest.mark.parametrize("target", [128, -1, (3, 3), (3, 128), np.ones(3, np.float32)])
    def test_targets_that_are_none(self, target: object, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint("llama"))
        with pytest.raises(jaxlin.JaxlinError, match="Target: expected"):
            jaxlin.attribute(model, model.embed([5, 6]), target)


class TestCommand:
    """The command on the shell."""

    def test_answer(self, tmp_path: Path) -> None:
        done = jaxlin_command("explain", PROMPT, "--top", "3", XDG_CACHE_HOME=str(tmp_path), COLUMNS="120")
        assert done.returncode == 0, done.stderr
        for word in ("next", "residual", "sum", "singular", "rank", "without the first token"):
            assert word in done.stdout
        assert any((tmp_path / "jaxlin").iterdir())
        again = jaxlin_command("explain", PROMPT, "--top", "3", XDG_CACHE_HOME=str(tmp_path), COLUMNS="120")
        assert (again.stdout, again.stderr) == (done.stdout, "")

    def test_json(self) -> None:
        done = jaxlin_command("explain", PROMPT, "--json", "--rule", "up", "--dtype", "float64", "--position", "3")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["residual"] <= 1e-13
        assert (found["rule"], found["dtype"], found["position"]) == ("up", "float64", 3)

    def test_without_a_spectrum(self) -> None:
        done = jaxlin_command("explain", PROMPT, "--spectrum", "none", "--no-bos")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(PROMPT)
        text = " ".join(done.stdout.split())
        assert re.search(r"measured in 32 random directions: \S+ to \S+ with 95 % confidence", text)
        assert "freeze rule gate, float32" in done.stdout
        assert "rank" not in done.stdout
        assert "singular" not in done.stdout

    def test_one_word_over_another(self) -> None:
        done = jaxlin_command("explain", PROMPT, "--spectrum", "none", "--target", "most", "--over", "only")
        assert "Contributions to the logit of ·most minus that of ·only (" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((PROMPT, "--model", "./nowhere"), "no such path"),
            ((PROMPT, "--position", "99"), "Position: expected one in"),
            ((PROMPT, "--target", "two words"), "one token"),
            (("",), "one token or more"),
            (("word " * 5000,), "this model's context"),
        ],
    )
    def test_errors_are_one_message(self, arguments: tuple[str, ...], message: str) -> None:
        done = jaxlin_command("explain", *arguments)
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert not done.stdout

    def test_version(self) -> None:
        as_module = subprocess.run([sys.executable, "-m", "jaxlin", "--version"], capture_output=True, text=True)
        for printed in (jaxlin_command("--version"), as_module):
            assert printed.stdout.startswith("jaxlin ")
