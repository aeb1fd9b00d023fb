"""Long prompts: patterns in blocks and recomputed factors, against the same map with everything kept."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_llama import build

import jaxlin
from jaxlin.attribution.components import contributions
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn import attention
from jaxlin.nn import blockwise as blocked
from jaxlin.nn.attention import attention_pattern
from jaxlin.nn.blockwise import Blocked
from jaxlin.nn.decoder import Decoder

BLOCK = 6
"""No divisor of the 20 tokens; shorter than them and than some windows, longer than others."""


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it, and patterns are in blocks from then on. What was traced before would not know."""

    def switch() -> None:
        jax.clear_caches()
        monkeypatch.setattr(attention, "MAX_DENSE_QUERIES", 4)
        monkeypatch.setattr(blocked, "BLOCK", BLOCK)

    yield switch
    jax.clear_caches()


def close(found: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, np.max(np.abs(b), initial=0)))


@pytest.mark.parametrize("name", ["gemma2", "ministral3", "gpt_oss"])
def test_blocks_are_the_whole(
    name: str, checkpoint: Callable[[str], Path], in_blocks: Callable[[], None], x64: None
) -> None:
    """Windows, softcaps, queries that grow and sinks: the same output and the same map, in float64."""
    model, _ = jaxlin.load(checkpoint(name), dtype="float64")
    x = model.embed(tiny.IDS)

    def everything() -> Any:
        lmap = jaxlin.local_map(model, x)
        return lmap.output, lmap.jacobian(progress=False), lmap @ x, jaxlin.attribute(model, x, 7, sources=True).sources

    whole = everything()
    in_blocks()
    held = jaxlin.freeze(model, x).layers
    assert isinstance(held, dict)
    assert isinstance(held["self_attn.pattern"], Blocked)
    close(everything(), whole)


def test_all_that_is_made_of_the_map(in_blocks: Callable[[], None], x64: None) -> None:
    """With biases and at an inner position; the ordinary Jacobian; attribution; all layers' maps."""
    model = build(layers=2, dtype="float64")
    x = model.embed([i % 40 for i in range(20)])

    def everything() -> Any:
        lmap = jaxlin.local_map(model, x, position=11)
        found = jaxlin.attribute(model, x, 7, position=11, sources=True)
        return (
            (lmap.jacobian(progress=False), lmap.bias, jaxlin.layer_maps(model, lmap.frozen)),
            jax.jit(jax.jacrev(lambda model, x: model(x)[-1, :8], argnums=1))(model, x),
            (found.tokens, found.bias, found.heads, found.neurons.contribution, found.sources),
        )

    whole = everything()
    in_blocks()
    close(everything(), whole)


def test_blocks_in_float32(in_blocks: Callable[[], None]) -> None:
    model = build(layers=1)
    in_blocks()
    assert jaxlin.local_map(model, model.embed([i % 40 for i in range(33)])).residual <= 3e-6


def test_blocks_in_16_bits(in_blocks: Callable[[], None]) -> None:
    """What is never seen has a score that float16 cannot hold: normalisers are in float32."""
    model = build(layers=1, dtype="float16")
    in_blocks()
    assert jnp.isfinite(model(model.embed([i % 40 for i in range(13)]))).all()


def test_a_singular_value_has_its_gradient(in_blocks: Callable[[], None], x64: None) -> None:
    """The normalisers are differentiated too: the pattern is a function of the input, as when it is whole."""
    model = build(layers=1, dtype="float64")
    x = model.embed([i % 40 for i in range(13)])

    def largest(x: jax.Array) -> jax.Array:
        lmap = jaxlin.local_map(model, x)
        return jnp.linalg.norm(lmap.rmatvec(jnp.eye(lmap.shape[0])).reshape(lmap.shape[0], -1), 2)

    whole = jax.grad(largest)(x)
    in_blocks()
    close(jax.grad(largest)(x), whole)


@pytest.mark.parametrize("limit", ["windows", "chunks"])
@pytest.mark.parametrize("size", [1, 5, 700, None])
def test_past_the_real_limit(size: int | None, limit: str, x64: None) -> None:
    """Above `MAX_DENSE_QUERIES`, in blocks of their real size, a pattern is its definition; rows end in mid-block."""
    t, h, n, k = attention.MAX_DENSE_QUERIES + 100, 4, 2, 8
    q, key, v = (jax.random.normal(jax.random.key(i), (t, heads, k), "float64") for i, heads in enumerate((h, n, n)))
    at = jnp.arange(t)
    config = replace(build(layers=1).config, **{limit: (size,)})
    pattern = attention_pattern(q, key, positions=at, scale=0.7, first_visible=config.first_visible(at)[0], softcap=3.0)
    assert isinstance(pattern, Blocked)
    z = jnp.einsum("thk,shk->hts", q, jnp.repeat(key, 2, axis=1), precision="highest") * 0.7
    query, seen, size = at[:, None], at[None, :], size or t
    near = query - seen < size if limit == "windows" else query // size == seen // size
    z = jnp.where((seen <= query) & near, 3 * jnp.tanh(z / 3), -jnp.inf)
    expected = jnp.einsum("hts,shk->thk", jax.nn.softmax(z), jnp.repeat(v, 2, axis=1), precision="highest")
    close(pattern.mix(v), expected)
    close(pattern.mix(v, 3), expected[-3:])


def test_recomputed_is_kept(checkpoint: Callable[[str], Path], x64: None) -> None:
    """Biases too: the factors are those of the whole model, though the map's rows pass one without biases."""
    model, _ = jaxlin.load(checkpoint("llama, biases"), dtype="float64")
    x = model.embed(tiny.IDS)
    maps = [jaxlin.local_map(model, x, rule="half", remat=again) for again in (True, False)]
    close(*((m.jacobian(progress=False), m.bias, m.output, m @ x) for m in maps))
    lists = [jaxlin.attribute(model, x, 7, rule="half", sources=True, remat=again) for again in (True, False)]
    close(*((a.tokens, a.bias, a.heads, a.attn_bias, a.mlp_bias, a.sources, a.neurons.contribution) for a in lists))


def temporary(function: Any, *shapes: Any, **static: Any) -> int:
    analysis: Any = function.lower(*shapes, **static).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def at_length(layers: int, tokens: int, *, remat: bool) -> tuple[Decoder, Any, LocalMap]:
    model = build(layers, biases=False, size=(32, 48))
    x = jax.ShapeDtypeStruct((tokens, 32), jnp.float32)
    return model, x, jax.eval_shape(lambda model, x: jaxlin.local_map(model, x, remat=remat), model, x)


def test_memory_grows_as_the_prompt_does() -> None:
    """Attribution and a row of J take less than one head's pattern."""
    tokens = 8192
    model, x, lmap = at_length(4, tokens, remat=False)
    one_head = 4 * tokens**2
    assert temporary(contributions, model, x, 0, jnp.zeros(32), rule="gate", neurons=4) < one_head
    u = jax.ShapeDtypeStruct((1, 32), jnp.float32)
    assert temporary(jax.jit(LocalMap.rmatvec), lmap, u) < one_head
    v = jax.ShapeDtypeStruct((1, tokens, 32), jnp.float32)
    assert temporary(jax.jit(LocalMap.matvec), lmap, v) < one_head


def test_recomputed_factors_are_those_of_one_block_at_a_time() -> None:
    u = jax.ShapeDtypeStruct((2, 32), jnp.float32)
    few, many = (temporary(jax.jit(LocalMap.rmatvec), at_length(layers, 2048, remat=True)[2], u) for layers in (4, 16))
    assert many <= 1.1 * few
    kept, again = (at_length(16, 2048, remat=remat)[2].frozen for remat in (False, True))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(c.layers)) for c in (kept, again)]
    assert sizes[1] == 16 * 2048 * 32
    assert sizes[0] > 2 * sizes[1]
