"""Numbers and arrays of NumPy and JAX, where an annotation names Python's or NumPy's."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import bad_calls
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.door import is_bearable
from jaxtyping import Array, Float, Int

import jaxlin
from jaxlin.common.annotations import check_of
from jaxlin.common.arguments import checked
from jaxlin.common.conversions import converter_of
from jaxlin.steering import add, zero_ablation

NUMPY = (np.int64(2), np.float32(0.5), np.array(2), np.array([1, 0]), np.eye(2), np.ones((3, 3, 3)))
VALUES = (*NUMPY, *map(jnp.asarray, NUMPY), [np.int64(1), 0], [np.arange(3)], (np.int64(0), 1), {"a": jnp.ones(2)})


def test_what_is_accepted_is_what_the_annotation_names() -> None:
    """Of every argument of every public function that is converted, as beartype judges."""
    count, faults = 0, []
    for name, function in bad_calls.public_functions():
        for parameter in inspect.signature(function).parameters.values():
            check, convert = check_of(parameter.annotation), converter_of(parameter.annotation)
            if check is None or convert is None:
                continue
            for value in VALUES:
                if check(value) is None:
                    count += 1
                    converted = convert(value)
                    if not is_bearable(converted, parameter.annotation):
                        faults.append((name, parameter.name, value, converted))
    assert not faults
    assert count > 500


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, np.int64(3), 3),
        (int | None, jnp.int32(3), 3),
        (float, 1, 1.0),
        (float, jnp.float32(0.5), 0.5),
        (float, 10**400, 10**400),
        (str | Sequence[int], np.array([1, 2]), [1, 2]),
        (Sequence[Sequence[int]], [jnp.array([1]), [2]], [[1], [2]]),
        (Sequence[float], np.array([0, 1]), [0.0, 1.0]),
        (tuple[int, ...], (np.int64(1), 2), (1, 2)),
        (str | tuple[str, int], ("heads", np.int64(1)), ("heads", 1)),
        (Mapping[str, float], {"a": np.float32(1)}, {"a": 1.0}),
    ],
    ids=repr,
)
def test_conversion(annotation: Any, value: Any, expected: Any) -> None:
    convert = converter_of(annotation)
    assert convert is not None
    converted = convert(value)
    assert converted == expected
    assert repr(converted) == repr(expected)  # 1 == np.int64(1) == 1.0


def test_what_is_right_stays_as_it_is() -> None:
    for annotation, value in (
        (Sequence[int], [1, 2]),
        (tuple[int, str], (1, "a")),
        (Float[np.ndarray, " n"], np.ones(2)),
    ):
        convert = converter_of(annotation)
        assert convert is not None
        assert convert(value) is value
    of_both, token = converter_of(int | Int[Array, ""]), jnp.int32(3)
    assert of_both is not None
    assert of_both(token) is token


def test_traced_values_stay_traced() -> None:
    """Where they are accepted at all."""

    @checked
    def twice(x: float, scale: Sequence[float] = (1.0,)) -> Any:
        return 2 * x

    assert jax.grad(lambda x: twice(x))(1.5) == 2
    model, _ = jaxlin.load()
    x = model.embed([3, 4, 5])

    def of_strength(make: Any) -> Any:
        return lambda strength: jaxlin.steering.edited(model, x, [make(strength)])[-1].sum()

    vector = np.linspace(-1, 1, model.config.hidden_size)
    added = of_strength(lambda strength: add(("resid_post", 1), vector, strength, scale="absolute"))
    zeroed = of_strength(lambda strength: zero_ablation(("resid_post", 1), strength))
    for loss, at in ((added, 0.5), (zeroed, 0.25)):
        slope = float(jax.grad(loss)(at))
        assert slope == pytest.approx(
            float(loss(np.float32(at + 1e-2)) - loss(jnp.float32(at - 1e-2))) / 2e-2, rel=0.05
        )
