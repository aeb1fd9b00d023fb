"""What is said at loading reaches every product of the model and its map."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from random_llama import IDS, build

import jaxlin
from jaxlin.attribution.components import contributions
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.layers import product
from jaxlin.nn.precision import MATMUL_PRECISIONS, PRECISIONS, matmul_precision


def products(function: Any, *arguments: Any, **static: Any) -> set[str]:
    """How the program for a GPU multiplies matrices."""
    text = function.trace(*arguments, **static).lower(lowering_platforms=("cuda",)).as_text()
    lines = [line for line in text.splitlines() if "dot_general" in line]
    assert lines
    kinds = {"tf32": "TF32", "precision_type = bf16": "BF16", "HIGHEST": "HIGHEST", "DEFAULT": "DEFAULT"}
    return {next(kind for sign, kind in kinds.items() if sign in line) + _count(line) for line in lines}


def _count(line: str) -> str:
    found = re.search(r"num_primitive_operations = (\d)", line)
    return f" x {found[1]}" if found else ""


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("highest", "HIGHEST"),
        ("high", "TF32 x 3"),
        ("fast", "TF32 x 1"),
        ("BF16_BF16_F32_X6", "BF16 x 6"),
        ("BF16_BF16_F32_X3", "BF16 x 3"),
    ],
)
def test_every_product(precision: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, folded or not, on a GPU; what sums up contributions stays in full."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = build(precision=precision)
    x = model.embed(IDS)
    lmap = jax.eval_shape(jaxlin.local_map, model, x)
    vectors = jnp.eye(32)
    for function, *arguments in (
        (jax.jit(lambda model, x: model.unembed(model(x))), model, x),
        (jax.jit(jax.jacrev(lambda model, x: model(x)[-1], argnums=1)), model, x),
        (jax.jit(LocalMap.rmatvec), lmap, vectors),
        (jax.jit(LocalMap.rmatvec), lmap, vectors[:1]),
        (jax.jit(LocalMap.matvec), lmap, x[None]),
    ):
        assert products(function, *arguments) == {expected}
    found = products(contributions, model, x, 0, vectors[0], rule="gate", neurons=2)
    assert found == {expected, "HIGHEST"}


def test_other_dtypes_and_backends_are_multiplied_as_they_are() -> None:
    assert {matmul_precision(precision, "float64") for precision in PRECISIONS} == {"highest"}
    assert {matmul_precision(precision, "float32") for precision in PRECISIONS} == {"highest"}  # this machine's CPU
    assert all(set(table) < set(PRECISIONS) for table in MATMUL_PRECISIONS.values())


def test_a_layer_alone_is_in_full() -> None:
    assert products(jax.jit(lambda a: product("ij,jk->ik", a, a)), jnp.eye(4)) == {"HIGHEST"}


def test_bad_input() -> None:
    with pytest.raises(jaxlin.JaxlinError, match=r"highest, high, fast, .*; found 'low'"):
        jaxlin.load(precision="low")
    assert jaxlin.load(precision="fast")[0].precision == "fast"
