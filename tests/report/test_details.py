"""The contributions under other freeze rules, which the page shows beside those under the model's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiny

import jaxlin
from jaxlin.report.rule_comparison import compare_rules


def test_rules_beside_each_other(checkpoint: Callable[[str], Path]) -> None:
    model, tokenizer = jaxlin.load(rule="half")
    x = model.embed(tokenizer.encode("The bridge out of the"))
    explained = jaxlin.attribute(model, x, (5, 9), position=-2)
    rules = compare_rules(model, x, (5, 9), -2, explained)
    assert [each.rule for each in rules] == ["gate", "up", "half"]
    gate, up, half = (np.array(each.contributions) for each in rules)
    np.testing.assert_array_equal(half, explained.tokens.tolist())
    for each in rules:
        np.testing.assert_allclose(sum(each.contributions) + each.bias, explained.value, atol=1e-4)
    other, _ = jaxlin.load(rule="gate")
    np.testing.assert_allclose(gate, jaxlin.attribute(other, x, (5, 9), position=-2).tokens, atol=1e-5)
    assert np.abs(gate - up).max() > 0.01
    plain, _ = jaxlin.load(checkpoint("gpt2"))
    x = plain.embed(tiny.IDS)
    assert compare_rules(plain, x, 3, -1, jaxlin.attribute(plain, x, 3)) == []
