"""`jaxlin check`: right models pass, and each line fails on a model that is broken in the way it looks for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlin
from jaxlin import __main__ as cli
from jaxlin.common.errors import JaxlinError, TokenizerError
from jaxlin.nn.freeze_modes import Detach, Replay
from jaxlin.nn.modules import RMSNorm
from jaxlin.report.check import Line, ModelCheck, against, check_model, checks, numbers
from jaxlin.report.check.texts import TEXTS, tokenizer_lines

Checkpoint = Callable[[str], Path]
PROMPTS = np.array([tiny.IDS[:6], tiny.IDS[6:12]])


@pytest.fixture
def model(checkpoint: Checkpoint) -> jaxlin.Decoder:
    return jaxlin.load(checkpoint("llama"))[0]


def with_norm(model: jaxlin.Decoder, change: Callable[[jax.Array, Any], jax.Array]) -> jaxlin.Decoder:
    """`model` whose final norm gives what `change` makes of its output and the context."""

    class Changed(RMSNorm):
        def __call__(self, x: Any, ctx: Any) -> Any:
            return change(super().__call__(x, ctx), ctx)

    norm = Changed(model.config.hidden_size, model.config.norm_eps)
    norm.weight = model.norm.weight
    return numbers.variant(model, norm=norm)


@jax.custom_batching.custom_vmap
def other_in_batches(x: jax.Array) -> jax.Array:
    """What it is given; in a batch, a little more."""
    return x


@other_in_batches.def_vmap
def _(size: int, batched: Any, x: jax.Array) -> Any:
    return 1.001 * x, batched[0]


def rounded(y: jax.Array, ctx: Any) -> jax.Array:
    return y if y.dtype == jnp.float64 else y.astype(jnp.bfloat16).astype(y.dtype)


BROKEN: dict[Any, Callable[[jax.Array, Any], jax.Array]] = {
    numbers.precision_line: rounded,
    numbers.batch_line: lambda y, ctx: other_in_batches(y),
    numbers.linearized_line: lambda y, ctx: y * (1 + 1e-6) if isinstance(ctx.mode, Detach) else y,
    numbers.residual_line: lambda y, ctx: y * 1.001 if isinstance(ctx.mode, Replay) else y,
    numbers.wide_residual_line: lambda y, ctx: y * (1 + 1e-9) if isinstance(ctx.mode, Replay) else y,
    numbers.affine_line: lambda y, ctx: y + 1e-9 * jnp.abs(y) if isinstance(ctx.mode, Replay) else y,
}


@pytest.mark.parametrize("line_of", [line_of for line_of in numbers.LINES if line_of in BROKEN])
def test_broken_models_fail(line_of: Any, model: jaxlin.Decoder) -> None:
    right, wrong = line_of(model, PROMPTS), line_of(with_norm(model, BROKEN[line_of]), PROMPTS)
    assert right.passed, right
    assert not wrong.passed, wrong
    assert (wrong.name, wrong.bar) == (right.name, right.bar)
    assert not jax.config.jax_enable_x64


def test_a_proof_that_sees_nothing_fails(model: jaxlin.Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers.corrupted_line(model, PROMPTS).passed
    monkeypatch.setattr(numbers, "residual_of", lambda lmap: 1e-14)
    assert not numbers.corrupted_line(model, PROMPTS).passed
    assert {*numbers.LINES} == {*BROKEN, numbers.corrupted_line}


def test_what_is_not_finite_or_cannot_be_computed_fails(model: jaxlin.Decoder) -> None:
    line = numbers.batch_line(with_norm(model, lambda y, ctx: y * jnp.inf), PROMPTS)
    assert (line.passed, line.note) == (False, "not a finite number")

    def raising(y: jax.Array, ctx: Any) -> jax.Array:
        raise RuntimeError("no \x1b[31m memory")

    line = numbers.batch_line(with_norm(model, raising), PROMPTS)
    assert (line.passed, line.figure, line.note) == (False, None, r"RuntimeError: no \x1b[31m memory")


class TestTokenizer:
    """Each line sees its fault."""

    @pytest.fixture
    def loaded(self) -> tuple[jaxlin.Decoder, Any]:
        return jaxlin.load()

    def lines(self, loaded: tuple[jaxlin.Decoder, Any]) -> list[Line]:
        return list(tokenizer_lines(loaded[1], loaded[0].config))

    def test_texts_that_do_not_come_back(self, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        assert all(line.passed for line in self.lines(loaded))
        decode = type(loaded[1]).decode
        monkeypatch.setattr(type(loaded[1]), "decode", lambda self, ids: decode(self, ids).replace("  ", " "))
        line = self.lines(loaded)[0]
        assert (line.passed, line.figure, line.bar) == (False, len(TEXTS) - 3, len(TEXTS))
        assert line.note.startswith("spaces: '  two before,  two")

    def test_ids_that_are_not_the_models(self, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        encode = type(loaded[1]).encode
        monkeypatch.setattr(type(loaded[1]), "encode", lambda self, *text, **bos: [*encode(self, *text, **bos), 2048])
        line = self.lines(loaded)[1]
        assert (line.passed, line.figure, line.bar) == (False, 2048, 2047)

    def test_bos_twice(self, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        encode, bos = type(loaded[1]).encode, loaded[1].bos_id
        monkeypatch.setattr(type(loaded[1]), "encode", lambda self, *text, **bos_: [bos, *encode(self, *text, **bos_)])
        line = self.lines(loaded)[2]
        assert (line.passed, line.figure) == (False, 2)


class TestAgainstTransformers:
    def line(self, folder: Path, model: jaxlin.Decoder) -> Line:
        return against.transformers_line(folder, model, PROMPTS)

    @pytest.mark.parametrize("name", ["llama", "gemma3"])
    def test_a_swapped_tensor_fails(self, name: str, checkpoint: Checkpoint) -> None:
        model, _ = jaxlin.load(checkpoint(name))
        right = self.line(checkpoint(name), model)
        assert right.passed, right
        mlp = model.layers.mlp
        mlp.gate_proj.weight, mlp.up_proj.weight = mlp.up_proj.weight, mlp.gate_proj.weight
        wrong = self.line(checkpoint(name), model)
        assert wrong.passed is False
        assert wrong.figure is not None
        assert wrong.figure > 1e-2
        # Nothing else sees it: the map of a wrong model is exact too.
        assert numbers.residual_line(model, PROMPTS).passed

    def test_what_transformers_cannot_load(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        model, _ = jaxlin.load(checkpoint("llama"))
        (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
        line = self.line(tmp_path, model)
        assert (line.passed, line.figure) == (None, None)
        assert line.note.startswith("not compared: transformers cannot load it")
        tiny_file = tmp_path / "model.safetensors"
        tiny_file.write_bytes((checkpoint("llama, tied") / "model.safetensors").read_bytes())
        (tmp_path / "config.json").write_text((checkpoint("llama") / "config.json").read_text())
        assert "would draw them" in self.line(tmp_path, model).note

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(JaxlinError, match=r"no transformers and no torch.*pip install"):
            check_model(against="transformers")


def test_what_is_not_used_is_listed(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that change nothing, keys that are ignored on request, and tensors that are left out."""
    for file in checkpoint("gemma3").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["new_key"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(checks, "LINES", ())
    with pytest.raises(JaxlinError, match="new_key"):
        check_model(tmp_path)
    seen: list[dict[str, str]] = []
    found = check_model(tmp_path, ignore_config_keys=["text_config.new_key"], on_facts=seen.append)
    assert seen == [found.facts]
    assert found.facts["unused keys"].startswith("text_config.new_key: ignored as requested; architectures, ")
    assert "text_config.use_cache" in found.facts["unused keys"]
    assert "left out 23 tensors vision_tower.*, multi_modal_projector.*: the vision half" in found.facts["note 1"]
    assert found.facts["family"] == "gemma3; model_type 'gemma3'"
    assert found.facts["format"] == "safetensors, F32"


def test_without_a_tokenizer_ids_are_drawn(model: jaxlin.Decoder) -> None:
    class Failing:
        def encode(self, text: str) -> list[int]:
            raise TokenizerError("no tokens")

    class Beyond:
        def encode(self, text: str) -> list[int]:
            return [model.config.vocab_size] * 20

    for tokenizer in (None, Failing(), Beyond()):
        drawn = checks.prompts_of.__wrapped__(model, tokenizer)
        assert drawn.shape == (len(checks.PROMPTS), checks.TOKENS)
        assert drawn.max() < model.config.vocab_size


def test_the_command() -> None:
    """On the shipped model all pass, in lines that a terminal of 80 columns has room for."""
    command = [sys.executable, "-c", "from jaxlin.__main__ import main; main()", "check"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, check=False)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[:2] == ["the small model of jaxlin", "  family      llama; model_type 'llama'"]
    assert lines[-1] == "10 of 10 checks pass"
    assert sum(line.startswith("  pass  ") for line in lines) == 10
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_status(as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = Line("logits, batched against single", False, float("nan"), 4e-6, note="not a finite number")
    unknown = Line(against.NAME, None, note="not compared: [bold]why[/]")
    found = ModelCheck("a", {"format": "safetensors, BF16", "note 1": "left out 2 tensors"}, (failed, unknown))

    def checked(name: Any, on_facts: Any, on_line: Any, **options: Any) -> ModelCheck:
        on_facts(found.facts)
        for line in found.lines:
            on_line(line)
        return found

    monkeypatch.setattr("jaxlin.report.check.check_model", checked)
    monkeypatch.setattr("jaxlin.report.commands.setup.configure_jax", lambda *options: None)
    with pytest.raises(SystemExit) as exit_:
        cli.app(["check", "a", *(["--json"] if as_json else [])])
    assert exit_.value.code == 1
    printed = capsys.readouterr().out
    if as_json:
        read = json.loads(printed)
        assert (read["passed"], read["lines"][0]["figure"], read["lines"][1]["passed"]) == (False, None, None)
    else:
        assert "FAIL  logits, batched against single" in printed
        assert "  ?   logits, against transformers\n        not compared: [bold]why[/]" in printed
        assert printed.endswith("0 of 2 checks pass, 1 fails, 1 could not be compared\n")
