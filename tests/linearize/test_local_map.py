"""The operator: against the dense Jacobian, against itself under every transform, and at every site."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_llama import IDS, build

import jaxlin
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sites import KINDS, SiteError
from jaxlin.porting.rope_parameters import rope_from_parameters


def last(model: Decoder, x: jax.Array) -> jax.Array:
    """The output at the last position."""
    return model(x)[-1]


@pytest.fixture(scope="module", params=["gate", "half"])
def model(request: pytest.FixtureRequest) -> Decoder:
    """A linearized model under the default rule, and under the one that is linear in both branches."""
    return build(linearize=True, rule=request.param)


def test_jacfwd_jacrev_and_rows_agree(model: Decoder) -> None:
    x = model.embed(IDS)
    forward = jax.jit(jax.jacfwd(last, argnums=1))(model, x)
    reverse = jax.jit(jax.jacrev(last, argnums=1))(model, x)
    lmap = local_map(model, x)
    rows = lmap.jacobian()
    np.testing.assert_allclose(forward, reverse, atol=1e-5)
    np.testing.assert_allclose(forward, rows, atol=1e-5)
    assert lmap.residual_of(rows) <= 3e-6
    assert lmap.residual <= 3e-6


def test_in_float64_they_agree_to_its_rounding(x64: None) -> None:
    model = build(linearize=True, rule="up", dtype="float64")
    x = model.embed(IDS)
    lmap = local_map(model, x)
    rows = lmap.jacobian()
    assert rows.dtype == np.float64
    np.testing.assert_allclose(jax.jit(jax.jacfwd(last, argnums=1))(model, x), rows, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacrev(last, argnums=1))(model, x), rows, atol=1e-12)
    assert lmap.residual_of(rows) <= 1e-13


def test_linearize_does_not_change_the_output(model: Decoder) -> None:
    plain = build(linearize=False, rule=model.rule)
    x = model.embed(IDS)
    expected = jax.jit(last)(plain, x)
    np.testing.assert_array_equal(jax.jit(last)(model, x), expected)
    np.testing.assert_array_equal(local_map(plain, x).output, expected)


def test_the_bias_is_what_the_biases_bring(model: Decoder) -> None:
    # b = sum over biases of (df/dbeta) beta, by differentiating the detached model with respect to its parameters.
    x = model.embed(IDS)
    derivative = jax.jacrev(last)(model, x)
    expected = np.zeros(32)
    for (path, parameter), (_, jacobian) in zip(
        jax.tree_util.tree_leaves_with_path(model), jax.tree_util.tree_leaves_with_path(derivative), strict=True
    ):
        if any(getattr(key, "name", None) == "bias" for key in path):
            expected += np.tensordot(np.asarray(jacobian, np.float64), np.asarray(parameter), parameter.ndim)
    bias = local_map(model, x).bias
    assert np.linalg.norm(bias) > 0.1
    np.testing.assert_allclose(bias, expected, atol=2e-5)


def test_without_biases_the_bias_is_exactly_zero() -> None:
    model = build(biases=False)
    assert not np.any(local_map(model, model.embed(IDS)).bias)


def test_the_ordinary_jacobian_does_not_reconstruct() -> None:
    # The residual can fail: without holding anything it is far from zero.
    model = build()
    x = model.embed(IDS)
    lmap = local_map(model, x)
    ordinary = jax.jacrev(last, argnums=1)(model, x)
    assert lmap.residual_of(ordinary) > 0.1


def test_a_model_that_gives_nothing() -> None:
    """Of embeddings of zero a model without biases gives zero, and so does its map: nothing is missed."""
    model = build(2, biases=False)
    nothing = jnp.zeros((3, 32))
    lmap = local_map(model, nothing)
    assert (lmap.residual, lmap.residual_of(lmap.jacobian())) == (0, 0)
    assert float(jax.jit(lambda x: local_map(model, x).residual)(nothing)) == 0
    assert jaxlin.lens.exact(model, nothing).defect == 0
    wrong = dataclasses.replace(lmap, bias=lmap.bias + 1)
    assert (wrong.residual, wrong.residual_of(wrong.jacobian())) == (np.inf, np.inf)


def test_what_is_not_finite_is_seen_outside_of_transforms_alone() -> None:
    model = build(2)
    spoilt = model.embed(IDS).at[2, 3].set(jnp.nan)
    with pytest.raises(jaxlin.JaxlinError, match="NaN or infinity at position 2"):
        local_map(model, spoilt)
    assert np.isnan(jax.jit(lambda x: local_map(model, x).output)(spoilt)).any()


def test_the_operator_is_its_dense_matrix(model: Decoder) -> None:
    lmap = local_map(model, model.embed(IDS), position=4)
    dense = np.asarray(lmap.jacobian(block=5), np.float64)
    v = np.asarray(jax.random.normal(jax.random.key(1), (2, 3, *lmap.shape[1:])))
    u = np.asarray(jax.random.normal(jax.random.key(2), (3, lmap.shape[0])))
    np.testing.assert_allclose(lmap @ v, np.einsum("dte,abte->abd", dense, v), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lmap.T @ u, np.einsum("dte,ad->ate", dense, u), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lmap.T @ u[0], np.einsum("dte,d->te", dense, u[0]), rtol=1e-4, atol=1e-4)
    assert not np.any(dense[:, 5:])


def test_it_is_shown_in_a_line() -> None:
    model = build()
    lmap = jaxlin.local_map(model, model.embed(IDS), source=("resid_mid", 1))
    size = (32, len(IDS), 32)
    assert repr(lmap) == f"LocalMap(shape={size}, source=('resid_mid', 1), target=final, rule='gate')"
    assert repr(jax.tree.map(lambda _: None, lmap)).startswith("LocalMap(shape=(), source=('resid_mid', 1)")
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), lmap)
    assert repr(batch).startswith(f"LocalMap(shape={(2, *size)}, ")


@pytest.mark.parametrize("position", [0, 7, 11, 18])
def test_what_comes_after_is_not_computed(position: int, x64: None) -> None:
    """Few later positions are held, and the map is that of a prompt that ends there."""
    model = build(layers=2, dtype="float64")
    x = model.embed([i % 40 for i in range(19)])
    lmap, ending = local_map(model, x, position=position), local_map(model, x[: position + 1])
    assert position < lmap.frozen.tokens <= position + 3
    assert lmap.shape == (32, 19, 32)
    dense = np.asarray(lmap.jacobian())
    np.testing.assert_allclose(dense[:, : position + 1], ending.jacobian(), rtol=0, atol=1e-12)
    assert not dense[:, position + 1 :].any()
    np.testing.assert_allclose(lmap @ x, ending @ x[: position + 1], rtol=0, atol=1e-12)


def test_frequencies_of_the_whole_prompt(x64: None) -> None:
    """Where a shorter prompt is rotated by other frequencies, it does not stand in for what is computed again."""
    model = build(layers=2, dtype="float64")
    stretched = rope_from_parameters(
        {"rope_type": "dynamic", "factor": 4.0}, dim=8, theta=1e4, max_position_embeddings=8
    )
    model.config = dataclasses.replace(model.config, ropes=(stretched,) * 2)
    x = model.embed([i % 40 for i in range(16)])
    kept, again = (local_map(model, x, position=10, remat=remat) for remat in (False, True))
    assert (kept.frozen.tokens, again.frozen.tokens) == (12, 16)
    np.testing.assert_allclose(again.jacobian(), kept.jacobian(), rtol=0, atol=1e-12)
    assert not np.allclose(kept.jacobian()[:, :11], local_map(model, x[:11]).jacobian(), rtol=0, atol=1e-6)
    # Within the trained length all prompts are rotated alike.
    assert local_map(model, x[:8], position=3, remat=True).frozen.tokens == 4


PLACES = ["embed", "final", *((kind, layer) for layer in (0, 2) for kind in KINDS)]


@pytest.mark.parametrize("source", PLACES)
def test_every_site_reconstructs(source: jaxlin.nn.sites.Site) -> None:
    model = build()
    x = model.embed(IDS)
    compared = 0
    for target in [("attn_out", 2), "final"]:
        try:
            lmap = local_map(model, x, source=source, target=target, position=3)
        except SiteError:
            continue
        assert lmap.residual <= 3e-6, target
        compared += 1
    assert compared or source == "final"


@pytest.mark.parametrize("position", [-1, 2])
def test_one_sweep_is_every_layer(position: int) -> None:
    model = build()
    x = model.embed(IDS)
    u = jax.random.normal(jax.random.key(0), (2, 32))
    found = jaxlin.sweep(model, jaxlin.freeze(model, x), u, kinds=KINDS, position=position)
    for kind in KINDS:
        assert found[kind].shape == (2, 3, 7, 32)
        for layer in range(3):
            lmap = local_map(model, x, source=(kind, layer), position=position)
            np.testing.assert_allclose(found[kind][:, layer], lmap.T @ u, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("nowhere",)}, "nowhere"),
        ({"position": 7}, r"0\.\.6"),
        ({"position": -8}, r"0\.\.6"),
    ],
)
def test_sweeps_of_what_is_not_there(options: dict, message: str) -> None:
    model = _shared()
    held = jaxlin.freeze(model, model.embed(IDS))
    with pytest.raises(SiteError, match=message):
        jaxlin.sweep(model, held, jnp.ones(32), **options)
    with pytest.raises(SiteError, match=message):
        jaxlin.layer_maps(model, held, **options)
    with pytest.raises(jaxlin.JaxlinError, match=r"expected directions of shape \(\.\.\., 32\); found \(3, 8\)"):
        jaxlin.sweep(model, held, jnp.ones((3, 8)))


def test_maps_compose() -> None:
    # The map embed -> layer 1 and the maps layer 1 -> output multiply to the map embed -> output.
    model = build()
    x = model.embed(IDS)
    upper = local_map(model, x, source=("resid_post", 1)).jacobian()
    lower = jnp.stack([local_map(model, x, target=("resid_post", 1), position=t).jacobian() for t in range(len(IDS))])
    whole = local_map(model, x).jacobian()
    product = jnp.einsum("dte,tesf->dsf", upper, lower, precision="highest")
    np.testing.assert_allclose(product, whole, atol=2e-5)


def test_the_replayed_map_is_linear_at_every_point() -> None:
    model = build(biases=False)
    x = model.embed(IDS)
    held = jaxlin.freeze(model, x)
    f = lambda v: jaxlin.replay(model, held, v)[-1]
    elsewhere = 3 * x[::-1] + 1
    np.testing.assert_array_equal(jax.jacrev(f)(x), jax.jacrev(f)(elsewhere))
    hessian = jax.jacfwd(jax.jacrev(lambda v: f(v)[0]))(x)
    assert not np.any(hessian)


def test_frozen_factors_can_be_edited() -> None:
    # Silencing every head leaves what the embedding and the MLPs bring: later tokens see nothing of earlier ones.
    model = build(biases=False)
    x = model.embed(IDS)
    held = jaxlin.freeze(model, x)
    held.layers["self_attn.pattern"] = jax.tree.map(jnp.zeros_like, held.layers["self_attn.pattern"])
    jacobian = jax.jacrev(lambda v: jaxlin.replay(model, held, v)[-1])(x)
    assert not np.any(jacobian[:, :-1])
    assert np.any(jacobian[:, -1])


class TestTransforms:
    """Composition with JAX's transforms."""

    model = staticmethod(functools.partial(build, 2, linearize=True))

    def test_linearize_vjp_jvp_and_transpose(self) -> None:
        model = self.model(biases=False)
        x = model.embed(IDS)
        f = functools.partial(last, model)
        v, u = jax.random.normal(jax.random.key(0), x.shape), jax.random.normal(jax.random.key(1), (32,))
        lmap = local_map(model, x)
        y, pushed = jax.jvp(f, (x,), (v,))
        np.testing.assert_allclose(pushed, lmap @ v, atol=2e-5)
        np.testing.assert_allclose(y, lmap.output, atol=1e-6)
        tangent_map = jax.linearize(f, x)[1]
        np.testing.assert_allclose(tangent_map(v), lmap @ v, atol=2e-5)
        np.testing.assert_allclose(jax.linear_transpose(tangent_map, x)(u)[0], lmap.T @ u, atol=2e-5)
        np.testing.assert_allclose(jax.vjp(f, x)[1](u)[0], lmap.T @ u, atol=2e-5)
        transposed = jax.linear_transpose(lambda v: lmap @ v, x)
        np.testing.assert_allclose(transposed(u)[0], lmap.T @ u, atol=2e-5)

    def test_vmap_over_a_batch_of_prompts(self) -> None:
        model = self.model()
        prompts = jnp.array([IDS, IDS[::-1]])
        x = jax.vmap(model.embed)(prompts)
        batched = jax.jit(jax.vmap(jax.jacrev(last, argnums=1), in_axes=(None, 0)))(model, x)
        maps = jax.vmap(lambda x: local_map(model, x))(x)
        assert maps.output.shape == (2, 32)
        rows = jax.jit(jax.vmap(lambda x: local_map(model, x).jacobian(block=10)))(x)
        np.testing.assert_allclose(rows, batched, atol=2e-5)
        for one, each in zip(batched, x, strict=True):
            np.testing.assert_allclose(one, local_map(model, each).jacobian(), atol=2e-5)
        products = jax.vmap(lambda lmap, v: lmap @ v)(maps, x)
        np.testing.assert_allclose(products, [local_map(model, each) @ each for each in x], atol=2e-5)
        for use in (lambda: maps @ x, lambda: maps.T @ maps.output, maps.jacobian, lambda: maps.residual, maps.svd):
            with pytest.raises(jaxlin.JaxlinError, match=r"found a batch of shape \(2,\), from jax.vmap"):
                use()

    def test_residual_and_spectrum_within_jit(self) -> None:
        model = self.model()
        x = model.embed(IDS)
        assert float(jax.jit(lambda x: local_map(model, x).residual)(x)) <= 3e-6
        with pytest.raises(jaxlin.JaxlinError, match="found traced ones"):
            jax.jit(lambda x: local_map(model, x).svd(2).s)(x)

    def test_the_map_goes_through_jit_scan_and_checkpoint(self) -> None:
        model = self.model()
        x = model.embed(IDS)
        lmap = local_map(model, x)

        @jax.jit
        def power_step(lmap: LocalMap, v: jax.Array) -> jax.Array:
            step = jax.checkpoint(lambda v: lmap.T @ (lmap @ v))
            return jax.lax.scan(lambda v, _: ((w := step(v)) / jnp.linalg.norm(w), None), v, length=200)[0]

        v = power_step(lmap, x)
        s = np.linalg.svd(np.asarray(lmap.jacobian()).reshape(32, -1), compute_uv=False)
        np.testing.assert_allclose(jnp.linalg.norm(lmap @ v), s[0], rtol=1e-4)

    def test_grad_of_a_singular_value(self) -> None:
        # The map at x depends on x; a gradient step on its largest singular value raises it.
        model = self.model(linearize=False)
        x = model.embed(IDS)

        def largest(x: jax.Array) -> jax.Array:
            lmap = local_map(model, x)
            return jnp.linalg.svd((lmap.T @ jnp.eye(32)).reshape(32, -1), compute_uv=False)[0]

        value, gradient = jax.value_and_grad(largest)(x)
        step = 1e-3 / jnp.linalg.norm(gradient)
        risen = (largest(x + step * gradient) - largest(x - step * gradient)) / (2 * step)
        np.testing.assert_allclose(risen, jnp.sum(gradient**2), rtol=2e-2)
        assert value > 0

    def test_what_a_linearized_model_has_no_gradient_of(self) -> None:
        """Its factors are constants to all derivatives: `local_map` is what is differentiated."""
        model = self.model(linearize=True)
        x = model.embed(IDS[:3])
        size = lambda x: jnp.sum(jnp.square(jax.jacfwd(functools.partial(last, model))(x)))
        assert not np.any(jax.jit(jax.grad(size))(x))
        u = jnp.eye(32)
        of_map = lambda model, x: jnp.sum(jnp.square(local_map(model, x).T @ u))
        gradient = jax.jit(jax.grad(of_map, argnums=1))
        assert np.any(gradient(model, x))
        np.testing.assert_allclose(gradient(model, x), gradient(self.model(linearize=False), x), rtol=1e-4, atol=1e-4)

    def test_eval_shape(self) -> None:
        model = self.model()
        shape = jax.eval_shape(lambda m, x: local_map(m, x), model, jax.ShapeDtypeStruct((7, 32), jnp.float32))
        assert shape.output.shape == (32,)
        assert shape.x.shape == (7, 32)


@pytest.mark.parametrize("block", [8, 64, 96, 512])
@pytest.mark.parametrize("linearize", [False, True])
def test_batched_rows_equal_single_rows(block: int, linearize: bool) -> None:
    # jax 0.10.2 on CPU gets batched VJPs of an ordinary RMSNorm wrong, silently: catch its kind.
    features, tokens = 576, 64
    x, w = jax.random.normal(jax.random.key(0), (tokens, features)), jnp.ones(features)
    u = jax.random.normal(jax.random.key(1), (block, tokens, features))

    def norm(x: jax.Array) -> jax.Array:
        from jaxlin.nn.context import Context
        from jaxlin.nn.freeze_modes import Detach, Plain
        from jaxlin.nn.layers import rms_norm

        return rms_norm(x, w, 1e-5, Context(Detach() if linearize else Plain()))

    pull = jax.vjp(norm, x)[1]
    batched = jax.jit(jax.vmap(pull))(u)[0]
    for row in (0, block // 2, block - 1):
        np.testing.assert_allclose(batched[row], pull(u[row])[0], atol=2e-5)


@pytest.mark.parametrize(("linearize", "block"), [(True, 64), (False, 8), (False, 64), (False, 96), (False, 512)])
def test_batched_vjps_of_the_model_equal_single_ones(block: int, linearize: bool) -> None:
    model = build(2, linearize=linearize)
    x = model.embed(IDS)
    u = jax.random.normal(jax.random.key(1), (block, 32))
    pull = jax.vjp(functools.partial(last, model), x)[1]
    batched = jax.jit(jax.vmap(pull))(u)[0]
    for row in (0, block // 2, block - 1):
        np.testing.assert_allclose(batched[row], pull(u[row])[0], atol=1e-4)


def test_no_weights_in_the_program() -> None:
    model = build()
    x = model.embed(IDS)
    lmap = local_map(model, x)
    for lowered in (
        jax.jit(last).lower(model, x),
        jax.jit(jax.jacfwd(last, argnums=1)).lower(model, x),
        jax.jit(LocalMap.rmatvec).lower(lmap, lmap.output[None]),
    ):
        assert len(lowered.as_text()) < 300_000


def test_temporary_memory_does_not_grow_with_depth() -> None:
    def temporary(layers: int) -> int:
        model = build(layers)
        lmap = local_map(model, model.embed(IDS))
        compiled = jax.jit(LocalMap.rmatvec).lower(lmap, jnp.eye(32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(12) <= 1.1 * temporary(4)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=4), st.integers(0, 2**31))
def test_any_prompt_reconstructs(ids: list[int], seed: int) -> None:
    model = _shared()
    x = model.embed(ids)
    lmap = local_map(model, x)
    assert lmap.residual <= 3e-6
    u = jax.random.normal(jax.random.key(seed), (32,))
    v = jax.random.normal(jax.random.key(seed + 1), x.shape)
    np.testing.assert_allclose(jnp.vdot(u, lmap @ v), jnp.vdot(lmap.T @ u, v), rtol=1e-3, atol=1e-3)


_shared = functools.cache(build)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": 7}, "0..6"),
        ({"position": -8}, "0..6"),
        ({"source": ("resid_post", 3)}, "0..2"),
        ({"source": ("nowhere", 0)}, "nowhere"),
        ({"source": "final"}, "comes after"),
        ({"source": ("resid_post", 2), "target": ("resid_pre", 1)}, "comes after"),
        ({"rule": "down"}, "gate, up, half"),
    ],
)
def test_what_is_not_there_is_refused(options: dict, message: str) -> None:
    model = _shared()
    with pytest.raises(jaxlin.JaxlinError, match=message):
        local_map(model, model.embed(IDS), **options)


def test_a_vector_of_another_shape_is_refused() -> None:
    model = _shared()
    lmap = local_map(model, model.embed(IDS))
    with pytest.raises(jaxlin.JaxlinError, match="shape"):
        lmap @ jnp.ones((3, 32))
    with pytest.raises(jaxlin.JaxlinError, match="at least 1 row; found 0"):
        lmap.jacobian(block=0)


def test_no_vectors_are_a_batch_too() -> None:
    lmap = local_map(_shared(), _shared().embed(IDS))
    assert (lmap @ jnp.ones((0, 7, 32))).shape == (0, 32)
    assert (lmap.T @ jnp.ones((2, 0, 32))).shape == (2, 0, 7, 32)


def test_the_frozen_model_takes_vectors_of_its_prompt_from_a_site_to_a_later_one() -> None:
    model = _shared()
    held = jaxlin.freeze(model, model.embed(IDS))
    for shape in ((3, 32), (7, 8)):
        with pytest.raises(jaxlin.JaxlinError, match=r"expected vectors of shape \(7, \.\.\., 32\)"):
            jaxlin.replay(model, held, jnp.ones(shape))
    with pytest.raises(SiteError, match="comes after"):
        jaxlin.replay(model, held, jnp.ones((7, 32)), source=("resid_post", 2), target=("resid_pre", 1))


REFUSED = """
import numpy as np
import jaxlin
from jaxlin.attribution import layer_streams as streams
from jaxlin.spectrum import layer_spectra as depth
from jaxlin.steering import edited_model

model, tokenizer = jaxlin.load()
x = model.embed([1, 2, 3])
held = jaxlin.freeze(model, x)
uses = (
    model,
    lambda x: jaxlin.local_map(model, x),
    lambda x: jaxlin.freeze(model, x),
    lambda x: jaxlin.attribute(model, x, 3),
    lambda x: depth.spectra_to_output(model, x),
    lambda x: streams.stream_contributions(model, x, 3),
    lambda x: edited_model.edited(model, x, ()),
)
for use in uses:
    for given in ([1, 2, 3], x[None], x[:, :8], x[:0]):
        try:
            use(given)
        except jaxlin.JaxlinError as error:
            print(error)
for use in (
    lambda: jaxlin.replay(model, held, x[:, 0]),
    lambda: jaxlin.layer_maps(model, held, kinds="resid_pre"),
    lambda: jaxlin.local_map(model, x, position=1.5),
    lambda: jaxlin.explain(model, tokenizer, "a", top=0),
    lambda: jaxlin.generate(model, tokenizer, ["a", "b"], 2),
    lambda: jaxlin.generate(model, tokenizer, "a", 2, edits=jaxlin.steering.add("embed", x[0])),
    lambda: jaxlin.causal.removal(model, x, jaxlin.local_map(model, x).svd(1), 3, samples=-1),
    lambda: jaxlin.layer_maps(model, x),
    lambda: jaxlin.sweep(model, x, x[0]),
    lambda: jaxlin.replay(model, x, x),
    lambda: jaxlin.local_map(model, x) @ (x + 1j),
    lambda: jaxlin.attribute(model, x, 1.5),
    lambda: jaxlin.explain(model, tokenizer, "a", top=1.5),
    lambda: jaxlin.attribute(model, x, np.ones(192, int)),
    lambda: tokenizer.to_str_tokens([[3, 4]]),
    lambda: jaxlin.steering.mean_difference(model, [3, 4], [[5, 6]], "final"),
    lambda: jaxlin.causal.without_heads(model, [(0, 1.5)]),
    lambda: jaxlin.steering.token_direction(model, "a"),
    lambda: jaxlin.causal.activation_patching(model, x, x[1:], 3),
    lambda: jaxlin.causal.validity(model, x, x[0]),
    lambda: jaxlin.causal.validity(model, x, x[:0]),
    lambda: jaxlin.causal.validity(model, x, x[:, :3]),
    lambda: jaxlin.causal.head_ablation(model, x[None], 3, position=5),
    lambda: jaxlin.causal.deletion(model, x[0], 3),
):
    try:
        use()
    except jaxlin.JaxlinError as error:
        print(error)
print(jaxlin.local_map(model, x, source=("resid_mid", np.int64(1))).source)
"""
"""In a process of its own: here the types of jaxtyping are checked first."""


def test_what_is_no_embedding() -> None:
    said = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True).stdout
    one = "Embeddings: expected shape (t, 192), one token or more, as model.embed(ids) gives; found {}."
    each = [one.format(found) for found in ("a list", "shape (1, 3, 192)", "shape (3, 8)", "shape (0, 192)")]
    assert said.splitlines()[:28] == each * 7
    factors = (
        "{}, frozen: expected frozen factors, as jaxlin.freeze gives, as the second argument; found an array of "
        "float32 of shape (3, 192)."
    )
    target = "Target: expected a token id, a pair of them, or a direction of floats; found {}. "
    target += "tokenizer.to_single_token gives the id of a word."
    assert said.splitlines()[28:] == [
        "replay, v: expected an array of floats of shape (t, *b, d), as the third argument; found an array of float32 "
        "of shape (3,).",
        "layer_maps, kinds: expected a tuple; found 'resid_pre'.",
        "local_map, position: expected an integer; found 1.5.",
        "Top: expected a number of words in 1..2048; found 0.",
        "generate, prompt[0]: expected an integer; found 'a'. tokenizer.encode(text) gives token ids.",
        "generate_batch, edits: expected a list; found an Add. Put it in a list.",
        "Removal: expected 0 random removals or more; found -1.",
        *map(factors.format, ("layer_maps", "sweep", "replay")),
        "Local map: expected real vectors; found complex ones. Apply the map to each part.",
        target.format("1.5"),
        "explain, top: expected an integer; found 1.5.",
        target.format("int64 of shape (192,)"),
        "Ids: expected one list of token ids; found shape (1, 2).",
        "mean_difference, towards[0]: expected a list; found 3. Put one prompt in a list too.",
        "Heads: expected pairs of a layer below 4 and a head below 4; found (0, 1.5).",
        "token_direction, token: expected an integer, as the second argument; found 'a'. "
        "tokenizer.to_single_token(word) gives the id of a word.",
        "Patching: expected prompts of as many tokens; found 3 and 2.",
        "validity, substitutes: expected an array of floats of shape (n, d), as the third argument; found an array of "
        "float32 of shape (192,).",
        *(
            f"Validity: expected substitutes of shape (n, 192), one or more; found {found}."
            for found in ("(0, 192)", "(3, 3)")
        ),
        one.format("shape (1, 3, 192)"),
        one.format("shape (192,)"),
        "('resid_mid', 1)",
    ]


@pytest.mark.parametrize(("ids", "message"), [([], "one token"), ([40], "0..39"), ([-1], "0..39"), ([1] * 65, "64")])
def test_prompts_that_the_model_cannot_take(ids: list[int], message: str) -> None:
    with pytest.raises(jaxlin.JaxlinError, match=message):
        _shared().embed(ids)
