"""The commands that read, compare, continue and steer one prompt: the numbers of the Python API, in any terminal."""

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from result_samples import TOKENS, samples
from rich.cells import cell_len
from rich.console import Console
from test_docs import BLOCK, assert_same_text

import jaxlin
from jaxlin import __main__ as cli
from jaxlin.common.token_names import joined
from jaxlin.report import Comparison, compare
from jaxlin.report.comparison_table import show_comparison
from jaxlin.report.lens_table import show_parts, show_reading
from jaxlin.report.steering_table import show_curve

PROMPT = "The bridge out of the"
NEW = ("--max-new-tokens", "6")

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; what it prints."""
    monkeypatch.setattr("jaxlin.report.commands.setup.configure_jax", lambda *options: None)

    def run(*arguments: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        cli.app(list(arguments), standalone_mode=False)
        printed = capsys.readouterr()
        assert not printed.err
        return printed.out

    return run


@pytest.fixture(scope="module")
def loaded() -> Any:
    return jaxlin.load()


def same(values: Any, result: jaxlin.results.Result, *left_out: str) -> None:
    """The JSON of a command has the values of a result."""
    expected = json.loads(json.dumps(result.to_dict()))
    for name in set(expected) - {"provenance", *left_out}:
        assert_near(values[name], expected[name])


def assert_near(ours: Any, theirs: Any) -> None:
    """The same plain values, but for rounding."""
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, two in zip(ours, theirs, strict=True):
            assert_near(one, two)
    else:
        assert ours == (pytest.approx(theirs, rel=1e-4, abs=1e-5) if isinstance(theirs, float) else theirs)


def test_lens(command: Command, loaded: Any, tmp_path: Path) -> None:
    model, tokenizer = loaded
    x = model.embed(tokenizer.encode(PROMPT))
    page, plot = tmp_path / "a.html", tmp_path / "a.png"
    values = json.loads(command("lens", PROMPT, "--top", "3", "--json", "--html", str(page), "--plot", str(plot)))
    predicted = int(np.argmax(model.unembed(model(x)[-1])))
    reading = jaxlin.lens.read(model, x, k=3, tokens=[predicted])
    same(values, reading)
    assert values["words"] == reading.words
    assert values["provenance"]["settings"]["tokens"] == [predicted]
    assert np.array(values["ranks"])[-1, -1, 0] == 0
    assert tokenizer.token(predicted).strip() in page.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")
    # A Jacobian lens of unit matrices is the logit lens.
    depth, d = model.config.num_hidden_layers, model.config.hidden_size
    unit = np.broadcast_to(np.eye(d, dtype=np.float32), (depth - 1, d, d))
    lens = jaxlin.lens.JacobianLens(unit, tuple(range(depth - 1)), 1)
    jaxlin.lens.save(lens, tmp_path / "unit.safetensors")
    options = ("--lens", str(tmp_path / "unit.safetensors"), "--target", "town", "--position", "2")
    printed = command("lens", PROMPT, "--top", "3", *options)
    assert "Jacobian lens after ·bridge" in printed
    token = tokenizer.to_single_token(" town")
    ranks = jaxlin.lens.read(model, x, k=3, tokens=[token]).ranks[:, 2, 0]
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    assert [int(row[2].replace(",", "")) for row in rows if row[1].strip()] == (ranks + 1).tolist()


def test_the_exact_lens(command: Command, loaded: Any) -> None:
    model, tokenizer = loaded
    parts = jaxlin.lens.exact(model, model.embed(tokenizer.encode(PROMPT)), position=3)
    values = json.loads(command("lens", PROMPT, "--exact", "--position", "3", "--json"))
    same(values, parts, "parts")
    np.testing.assert_allclose(values["projections"], parts.projections, atol=1e-5)
    assert values["words"] == parts.words(model, 5).positive.words
    printed = command("lens", PROMPT, "--exact", "--position", "3")
    (total,) = (line for line in printed.splitlines() if line.startswith("│ sum"))
    assert total.count("+100%") == model.config.num_hidden_layers + 1


def test_generate(command: Command, loaded: Any, tmp_path: Path) -> None:
    model, tokenizer = loaded
    page, plot = tmp_path / "a.html", tmp_path / "a.svg"
    options = (*NEW, "--temperature", "0.7", "--top-k", "50", "--seed", "3")
    values = json.loads(command("generate", PROMPT, *options, "--json", "--html", str(page), "--plot", str(plot)))
    settings = {"temperature": 0.7, "top_k": 50, "seed": 3}
    generation = jaxlin.generate(model, tokenizer, PROMPT, 6, **settings, return_logits=True)
    assert (values["tokens"], values["text"]) == (generation.tokens, generation.text)
    np.testing.assert_allclose(values["probabilities"], generation.probabilities, rtol=1e-4)
    assert "logits" not in values
    assert generation.text.strip() in page.read_text()
    assert "<svg" in plot.read_text()
    assert command("generate", PROMPT, *options) == f"{PROMPT}{generation.text}\n"


def test_steer(command: Command, loaded: Any, tmp_path: Path) -> None:
    model, tokenizer = loaded
    page, plot = tmp_path / "a.html", tmp_path / "a.pdf"
    doses = ("--strength", "0", "--strength", "0.3")
    files = ("--html", str(page), "--plot", str(plot))
    values = json.loads(command("steer", PROMPT, "--word", "town", *doses, *NEW, "--json", *files))
    direction = jaxlin.steering.token_direction(model, tokenizer.to_single_token(" town"))
    edit = jaxlin.steering.add(("resid_post", 2), direction)
    curve = jaxlin.dose_curve(model, tokenizer, edit, [PROMPT], "town", [0.0, 0.3], max_new_tokens=6)
    same(values, curve, "prompts")
    assert all(text[0].strip() in page.read_text() for text in curve.texts)
    assert plot.read_bytes().startswith(b"%PDF")
    groups = {"--towards": ("happy day", "a smile"), "--away": ("sad day",)}
    texts = [part for option, group in groups.items() for text in group for part in (option, text)]
    values = json.loads(command("steer", PROMPT, *texts, "--layer", "1", *doses, *NEW, "--json"))
    ids = [[tokenizer.encode(text) for text in group] for group in groups.values()]
    edit = jaxlin.steering.add(("resid_post", 1), jaxlin.steering.mean_difference(model, *ids, ("resid_post", 1)), 0.3)
    expected = [jaxlin.generate(model, tokenizer, PROMPT, 6, edits=edits).text for edits in ([], [edit])]
    assert [each["text"] for each in values["generations"]] == expected


def test_compare(command: Command, loaded: Any, tmp_path: Path) -> None:
    model, tokenizer = loaded
    page, plot = tmp_path / "a.html", tmp_path / "a.png"
    texts = ("The bridge out of the town is", "The old bridge out of it is")
    words = ("--target", "the", "--over", "not")
    values = json.loads(command("compare", *texts, *words, "--json", "--html", str(page), "--plot", str(plot)))
    comparison = compare(model, tokenizer, *texts, target="the", over="not")
    same(values, comparison)
    pair = tuple(tokenizer.to_single_token(f" {word}") for word in ("the", "not"))
    differences = 0.0
    for side, text in enumerate(texts):
        ids = tokenizer.encode(text)
        attribution = jaxlin.attribute(model, model.embed(ids), pair)
        column = comparison.contributions[:, side]
        np.testing.assert_allclose(column[~np.isnan(column)], attribution.tokens, atol=1e-5)
        assert "".join(row[side] or "" for row in comparison.tokens) == "".join(tokenizer.to_str_tokens(ids))
        np.testing.assert_allclose(comparison.heads[side], attribution.heads, atol=1e-5)
        np.testing.assert_allclose(np.nansum(column) + comparison.bias[side], comparison.logit[side], atol=1e-4)
        probabilities = np.exp(np.float64(model.unembed(model(model.embed(ids))[-1])))
        np.testing.assert_allclose(
            comparison.probability[side], probabilities[pair[0]] / probabilities.sum(), rtol=1e-4
        )
        differences += (2 * side - 1) * attribution.tokens.sum()
    np.testing.assert_allclose(comparison.differences.sum(), differences, atol=1e-4)
    assert (None, " old") in comparison.tokens
    assert (" bridge", " bridge") in comparison.tokens
    layer, head, first, second = comparison.largest_heads(1)[0]
    changes = np.abs(comparison.heads[1] - comparison.heads[0])
    assert abs(second - first) == changes[layer, head] == changes.max()
    assert all(text in page.read_text() for text in texts)
    assert plot.stat().st_size > 5000
    default = compare(model, tokenizer, *texts)
    assert default.target == tokenizer.token(
        int(np.argmax(model.unembed(model(model.embed(tokenizer.encode(texts[0])))[-1])))
    )
    assert isinstance(default, Comparison)


def test_narrow_terminals() -> None:
    """No line is wider than the terminal, no number is cut, and parts of characters are told apart."""
    drawn: Any = samples()
    parts, words = drawn["ExactLens"], [[["the", "·a", "שלום"]] * len(TOKENS)]
    text, piece = joined(TOKENS), "·🌉⟨F0 9F⟩"
    for columns in (50, 80):
        for show, expected in (
            (lambda console: show_reading(drawn["LensReading"], 5, console), (text, f"after {piece}")),
            (lambda console: show_parts(parts, words, console), (text, f"│ {piece}")),
            (lambda console: show_curve(drawn["DoseCurve"], text, console), (text, "p(the)")),
            (lambda console: show_comparison(drawn["Comparison"], console), (f"A  {text}", f"│ {piece}")),
        ):
            out = io.StringIO()
            show(Console(file=out, width=columns, highlight=False))
            printed = out.getvalue()
            assert max(map(cell_len, printed.splitlines())) <= columns, printed
            assert all(each in printed for each in expected), printed
            assert "…" not in printed
            lone = printed.count("⟨E4⟩")  # a byte at the end of a prompt, which belongs to no character
            assert printed.count("\N{REPLACEMENT CHARACTER}") == lone


def test_the_page_of_the_docs(command: Command) -> None:
    """What a command prints is what the page shows below it."""
    text = (Path(__file__).parents[2] / "docs" / "command.md").read_text()
    printed_blocks = [block for _, block in BLOCK.findall(text) if block.startswith("$ jaxlin ")]
    names = {shlex.split(block.partition("\n")[0])[2] for block in printed_blocks}
    assert {"compare", "lens", "generate", "steer"} <= names
    for block in printed_blocks:
        line, _, expected = block.partition("\n")
        assert_same_text(command(*shlex.split(line)[2:]), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("steer", PROMPT), "expected either --word, or both --towards and --away"),
        (("steer", PROMPT, "--word", "a", "--towards", "b"), "expected either --word, or both"),
        (("steer", PROMPT, "--away", "b"), "expected either --word, or both"),
        (("steer", PROMPT, "--towards", "a", "--away", "b", "--plot", "a.png"), "Give it by --target"),
        (("steer", PROMPT, "--word", "two words"), "one token"),
        (("steer", PROMPT, "--word", "town", "--layer", "9"), "resid_post"),
        (("lens", PROMPT, "--exact", "--lens", "a.pt"), "expected --exact or --lens; found both"),
        (("lens", PROMPT, "--lens", "none.pt"), "none.pt"),
        (("lens", PROMPT, "--position", "99"), "Position: expected one in"),
        (("lens", ""), "expected a text of one token or more"),
        (("generate", PROMPT, "--plot", "a.gif"), "expected a file that ends in .png, .svg or .pdf"),
        (("generate", PROMPT, "--html", "nowhere/a.html"), "expected a folder nowhere to write in"),
        (("generate", PROMPT, "--temperature", "1", "--top-p", "1.4"), "found 1.4"),
        (("generate", PROMPT, "--chat"), "expected a chat template"),
        (("compare", PROMPT, PROMPT, "--target", "a", "--over", "a"), "expected another word than the target"),
        (("compare", PROMPT, ""), "of one token or more"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str, command: Command) -> None:
    with pytest.raises(jaxlin.JaxlinError) as error:
        command(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell asks by environment variables what may follow."""
    for words, expected in (("jaxlin com", ["compare"]), ("jaxlin lens --ex", ["--exact"])):
        monkeypatch.setenv("_JAXLIN_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit):
            cli.app([], prog_name="jaxlin")
        assert capsys.readouterr().out.split() == expected
