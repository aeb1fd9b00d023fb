"""What the README shows is what happens: its Python runs, its comments hold, and its command prints what it prints."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PROMPT, jaxlin_command

import jaxlin

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the Python of the README has defined when all of it has run, one block after another."""
    found: dict[str, Any] = {}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), found)
    return found


def test_the_map(names: dict[str, Any]) -> None:
    x, dense, lmap = names["x"], np.asarray(names["J"], np.float64), names["lmap"]
    output = names["f"](names["model"], x)
    assert dense.shape == (lmap.shape[0], *x.shape)
    np.testing.assert_allclose(np.einsum("dts,ts->d", dense, x), output, atol=1e-4)
    np.testing.assert_allclose(lmap.jacobian(progress=False), dense, atol=1e-4)
    np.testing.assert_allclose(names["y"], output, atol=1e-4)
    np.testing.assert_allclose(names["w"], np.einsum("dts,d->ts", dense, names["y"]), atol=1e-3)
    assert names["logits"].shape == (names["model"].config.vocab_size,)
    assert lmap.residual <= 3e-6
    u, s, v = names["triplets"]
    assert (u.shape, s.shape, v.shape) == ((x.shape[1], 8), (8,), (8, *x.shape))


def test_the_attribution(names: dict[str, Any]) -> None:
    found, logits = names["found"], names["logits"]
    difference = float(logits[names["most"]] - logits[names["only"]])
    np.testing.assert_allclose(found.tokens.sum() + found.bias, difference, atol=1e-4)
    parts = found.embed + found.attn.sum() + found.mlp.sum() + found.final_bias
    np.testing.assert_allclose(parts, difference, atol=1e-4)
    np.testing.assert_allclose(found.heads.sum(axis=1), found.attn, atol=1e-4)
    assert found.sources[names["layer"], names["head"], names["t"]] == found.sources.max()
    gone = names["gone"]
    less = names["without"].unembed(names["f"](names["without"], names["x"]))
    fallen = difference - float(less[names["most"]] - less[names["only"]])
    np.testing.assert_allclose(gone.effects[names["layer"], names["head"]], fallen, atol=1e-4)
    patched = names["patched"]
    np.testing.assert_allclose(patched.recovered[0], [0, 0, 1, 0, 0, 0], atol=1e-5)
    assert patched.rank_correlation > 0.9


def test_the_lenses(names: dict[str, Any]) -> None:
    seen, told, lens, logits = (names[name] for name in ("seen", "told", "lens", "logits"))
    layers, (tokens, d) = names["model"].config.num_hidden_layers, names["x"].shape
    assert seen.ids.shape == (layers, tokens, 8)
    assert seen.ids[-1, -1, 0] == np.argmax(logits)
    assert told.parts.shape == (layers + 1, tokens, d)
    np.testing.assert_allclose(told.parts.sum(1), np.tile(told.output, (layers + 1, 1)), atol=1e-4)
    assert told.words(names["model"]).positive.ids.shape == (layers + 1, tokens, 8)
    assert lens.n_prompts == 4
    assert lens.error.shape == (layers - 1,)
    assert (lens.error > 0).all()


def test_the_directions(names: dict[str, Any]) -> None:
    """What the map writes most is a direction that matters: without it the output is another."""
    model, x, write = names["model"], names["x"], names["write"]
    without = jaxlin.steering.edited(model, x, [jaxlin.steering.ablate(("resid_post", 2), write)])
    whole = jaxlin.steering.edited(model, x, [])
    assert without.shape == x.shape
    assert np.abs(without - whole).max() > 1e-2


def test_the_command() -> None:
    """The first output of the README, its words and, but for their last digits, its numbers."""
    shown = next(block for kind, block in BLOCKS if not kind and block.startswith("<|bos|>"))
    printed = jaxlin_command("explain", PROMPT, COLUMNS="100")
    assert printed.returncode == 0, printed.stderr

    def words(text: str) -> list[str]:
        return NUMBER.sub("_", re.sub("[█░]", "", text)).split()

    def numbers(text: str) -> list[float]:
        # Not those of rounding, nor whole percents.
        return [float(number) for number in NUMBER.findall(text) if "." in number and "e" not in number]

    assert f'jaxlin explain "{PROMPT}"\n' in README
    assert words(printed.stdout) == words(shown)
    np.testing.assert_allclose(numbers(printed.stdout), numbers(shown), rtol=1e-3, atol=2e-3)
