"""What every result can: be compared, become a table, a dictionary, a file, HTML, and say where it is from."""

import copy
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from result_samples import NAMES, TOKENS, changed, samples
from rich.cells import cell_len
from rich.console import Console

import jaxlin
from jaxlin.activations import Activations
from jaxlin.common.errors import CheckpointError, JaxlinError
from jaxlin.common.token_names import joined, left_to_right, split_text, token_names
from jaxlin.nn.routers import Route
from jaxlin.nn.stack import Layout, Stack
from jaxlin.report.terminal import show
from jaxlin.results import Result, load
from jaxlin.results.files import CLASSES

SAMPLES = samples()


def test_there_is_a_sample_of_every_class() -> None:
    """A new result gets a row in tests/result_samples.py, and with it all tests here and in tests/plots."""
    assert set(SAMPLES) == {name for name, each in CLASSES.items() if each.__module__.startswith("jaxlin.")}


@pytest.mark.parametrize("name", SAMPLES)
class TestEvery:
    def test_equal_by_value(self, name: str) -> None:
        one, same = samples()[name], samples()[name]
        assert (one == same) is True
        assert hash(one) == hash(same)
        assert (one == changed(one)) is False
        assert one != 1
        assert one != SAMPLES["Ranks" if name != "Ranks" else "Line"]
        assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one

    def test_to_dict_is_json(self, name: str) -> None:
        values = json.loads(json.dumps(SAMPLES[name].to_dict(), allow_nan=False))
        assert values["provenance"]["tokens"] == list(TOKENS)
        assert values["provenance"]["model"] == "a/model"

    def test_table(self, name: str) -> None:
        frame = SAMPLES[name].to_pandas()
        assert len(frame)
        assert frame.attrs["provenance"]["rule"] == "gate"
        if "position" in frame and name not in ("TokenReading", "Source"):
            known = frame.dropna(subset=["position"])
            assert known["token"].tolist() == [TOKENS[position] for position in known["position"]]

    def test_there_and_back(self, name: str, tmp_path: Path) -> None:
        result, path = SAMPLES[name], tmp_path / "result.safetensors"
        result.save(path)
        back = type(result).load(path)
        assert type(back) is type(result)
        assert back == result
        if name == "JacobianLens":  # whose files other tools read too
            with pytest.raises(CheckpointError, match="expected a result"):
                load(path)
        else:
            assert load(path) == result
        assert back.provenance.to_dict() == result.provenance.to_dict()
        assert back.token_names == list(NAMES)
        assert back.to_dict() == result.to_dict()
        assert back._repr_html_() == result._repr_html_()
        assert back.to_pandas().equals(result.to_pandas())

    def test_html_has_the_words_and_no_markup_of_theirs(self, name: str) -> None:
        page = SAMPLES[name]._repr_html_()
        assert "a<b" not in page.replace("&lt;", "")
        assert "token 3" not in page


def test_names_of_tokens() -> None:
    assert token_names(TOKENS) == list(NAMES)
    assert joined(TOKENS) == "<bos> Mary gave a<bשלום 🌉 é Mary"
    assert token_names(["<0xE4>", "<0xBD>", "<0xA0>", "<0xE5>", "<0xA5>", "<0xBD>", "<0xFF>"]) == [
        "你⟨E4⟩", "⟨BD⟩₁", "⟨A0⟩", "好⟨E5⟩", "⟨A5⟩", "⟨BD⟩₅", "⟨FF⟩",
    ]  # fmt: skip
    assert token_names(["f", "<0xC3><0xA9>", "\u0301", "\n\t\u202e"]) == [
        "f",
        "é",
        "◌\u0301",
        "\\n\\t\N{REPLACEMENT CHARACTER}",
    ]
    assert joined(["<0xE4>", "x"]) == "\N{REPLACEMENT CHARACTER}x"
    for position in range(len(TOKENS)):  # within 🌉, and elsewhere
        before, after = split_text(TOKENS, position)
        assert before + after == joined(TOKENS)
        assert "\N{REPLACEMENT CHARACTER}" not in before
    assert split_text(["a", "<0xE4>", "<0xBD>", "<0xA0>"], 2) == ("a", "你")
    assert left_to_right("שלום") == "שלום\u200e"
    assert left_to_right("é") == "é"


def test_tables_say_where_and_what() -> None:
    reading = SAMPLES["LensReading"].to_pandas()
    assert list(reading) == [
        "layer",
        "position",
        "token",
        "place",
        "id",
        "word",
        "logit",
        "probability",
        "rank of ·gave",
        "rank of ·a<b",
    ]
    assert sorted(set(reading["layer"])) == [0, 1, 3]
    attribution = SAMPLES["Attribution"]
    frame = attribution.to_pandas()
    by_token = frame[frame.part == "tokens"]
    np.testing.assert_array_equal(by_token["value"].to_numpy(np.float32), attribution.tokens)
    assert str(frame["layer"].dtype) == "Int64"
    curve = SAMPLES["DoseCurve"].to_pandas()
    assert curve[["strength", "prompt", "text"]].values.tolist()[2] == [0.5, "One", "c"]


def test_a_batch_has_a_column_of_prompts() -> None:
    model, _ = jaxlin.load()
    xs = jnp.stack([model.embed([3, 4, 5]), model.embed([5, 4, 3])])
    batch = jax.vmap(lambda x: jaxlin.attribute(model, x, 7, neurons=2))(xs)
    assert batch.provenance is None
    frame = batch.to_pandas()
    assert frame[frame.part == "tokens"]["prompt"].tolist() == [0, 0, 0, 1, 1, 1]
    one = jaxlin.attribute(model, xs[1], 7, neurons=2).tokens
    np.testing.assert_allclose(
        frame[(frame.part == "tokens") & (frame.prompt == 1)]["value"], one, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(JaxlinError, match="expected one result; found a batch"):
        batch.plot()


def test_where_a_result_is_from(tmp_path: Path) -> None:
    model, tokenizer = jaxlin.load()
    ids = tokenizer.encode("Mary and 🌉 Mary")
    x = model.embed(ids)
    found = jaxlin.attribute(model, x, ids[1])
    known = found.provenance
    assert known is not None
    assert known.ids == tuple(ids)
    assert known.tokens == tokenizer.to_str_tokens(ids)
    assert known.model == "the small model of jaxlin"
    assert len(known.files) == 32
    assert known.rule == "gate"
    assert known.settings == {"target": ids[1], "position": len(ids) - 1}
    assert found.exclude_first().provenance == found.neurons.provenance == known
    assert jaxlin.attribute(model.linearized, x, ids[1]).provenance.files == known.files
    edited = jaxlin.with_edits(model, [jaxlin.steering.add(("resid_post", 1), jnp.ones(192))])
    assert len(jaxlin.attribute(edited, x, ids[1]).provenance.settings["edits"]) == 1
    # Another program is not compiled for another prompt, and a transform drops what is known.
    calls = []

    @jax.jit
    def double(result: jaxlin.Attribution) -> jaxlin.Attribution:
        calls.append(result.provenance)
        return jax.tree.map(lambda a: 2 * a, result)

    other = jaxlin.attribute(model, model.embed(ids[::-1]), ids[1])
    assert double(found).provenance is double(other).provenance is None
    assert calls == [None]
    assert jaxlin.attribute(model, x + 0, ids[1]).provenance.ids is None
    labelled = double(found).with_prompt(tokenizer, ids)
    assert labelled.token_names == found.token_names
    assert labelled.neurons.provenance == labelled.provenance
    found.save(tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").subject == found.subject == f"the logit of {tokenizer.token(ids[1])}"


def test_activations_of_unlike_layers_and_routes(tmp_path: Path) -> None:
    heads = Stack(((np.ones((2, 3, 2, 4)), np.ones((2, 3, 5, 4))),), Layout.of(("a", "b", "a", "b")))
    route = Route(jnp.zeros((4, 3, 2), jnp.int32), jnp.ones((4, 3, 2)))
    found = Activations({"heads": heads, "route": route}, {}, 4)
    assert found == Activations({"heads": heads, "route": route}, {}, 4)
    assert found.to_pandas()["head"].max() == 4
    found.save(tmp_path / "a.safetensors")
    back = Activations.load(tmp_path / "a.safetensors")
    assert [back["heads", layer].shape for layer in range(4)] == [(3, 2, 4), (3, 5, 4)] * 2
    np.testing.assert_array_equal(back["route"][1], np.ones((4, 3, 2)))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_lens_files_say_where_the_lens_is_from(suffix: str, tmp_path: Path) -> None:
    model, tokenizer = jaxlin.load()
    prompts = [tokenizer.encode("The cat sat on the mat."), tokenizer.encode("The dog ran away.")]
    path = tmp_path / f"lens{suffix}"
    options = {"source_layers": [2], "skip_first": 1, "progress": False, "dim_batch": 192}
    fitted = jaxlin.lens.fit(model, prompts, corpus="stories", out=path, **options)
    known = jaxlin.lens.load(path).provenance
    assert known is not None
    assert known.to_dict() == fitted.provenance.to_dict()
    assert (known.model, known.settings["corpus"]) == ("the small model of jaxlin", "stories")
    assert known.versions["jaxlin"] == fitted.provenance.versions["jaxlin"]
    assert known.files == fitted.provenance.files
    assert jaxlin.lens.merge([fitted, fitted]).provenance == fitted.provenance


def test_a_file_is_read_before_its_package_is_imported(tmp_path: Path) -> None:
    names = ("Attribution", "Explanation", "ModelCheck")
    for name in names:
        SAMPLES[name].save(tmp_path / f"{name}.safetensors")
    program = """
import sys
from jaxlin.results import load
assert "jaxlin.attribution" not in sys.modules
print(*(type(load(path)).__name__ for path in sys.argv[1:]))
"""
    command = [sys.executable, "-c", program, *(str(tmp_path / f"{name}.safetensors") for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == list(names), done.stderr


def test_what_is_no_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, path = SAMPLES["Ranks"], tmp_path / "a.safetensors"
    result.save(path)
    with pytest.raises(JaxlinError, match="is there already"):
        result.save(path)
    with pytest.raises(JaxlinError, match="class Attribution; found one of Ranks"):
        jaxlin.Attribution.load(path)
    for wrong in (tmp_path / "a.npz", "a\0.safetensors", ""):
        with pytest.raises(JaxlinError, match="a path that ends in"):
            result.save(wrong)
    with pytest.raises(JaxlinError, match="expected a directory"):
        result.save(tmp_path / "none" / "a.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "b.safetensors")
    neurons = {"result": "Neurons", "fields": dict.fromkeys(("layer", "index", "contribution"), 1)}
    twice = {"result": "Neurons", "fields": {key: {"array": "0"} for key in ("layer", "index", "contribution")}}
    contents = [3, {"value": 3}, {"value": {"array": "0"}}, {"value": [1]}, {"value": twice}]
    contents += [{"value": {"result": name, "fields": {}}} for name in ("Path", "Ranks")]
    contents += [{"value": neurons, "provenance": each} for each in ({"ids": "x"}, {"texts": {"x": "y"}}, 3)]
    for number, content in enumerate(contents):
        text = json.dumps(content)
        damaged = tmp_path / f"{number}.safetensors"
        safetensors.numpy.save_file({"0": np.zeros(2)}, damaged, {"jaxlin_result": text})
        with pytest.raises(CheckpointError, match="expected a result, as its method save writes"):
            load(damaged)
    with pytest.raises(JaxlinError, match="traced arrays"):
        jax.jit(lambda a: SAMPLES["Neurons"].replaced(layer=a).save(tmp_path / "c.safetensors"))(np.ones(3))
    for module, call in (("pandas", result.to_pandas), ("matplotlib", result.plot)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(JaxlinError, match="pip install"):
            call()


def test_bars_in_a_narrow_terminal() -> None:
    """At 50 columns, +8.03 and +4.59 once had the same clipped bar."""
    values = [0.1, 8.03, 4.59, *[0.0] * (len(TOKENS) - 3)]
    explanation = SAMPLES["Explanation"].replaced(contributions=values)
    for width, longest in ((100, 28), (50, 18), (32, 0)):
        out = io.StringIO()
        show(explanation, Console(file=out, width=width))
        lines = out.getvalue().split("\n")
        bars = [next(line for line in lines if number in line).count("█") for number in ("+8.03", "+4.59")]
        assert bars[0] <= longest
        assert bars[1] == round(bars[0] * 4.59 / 8.03)
        assert all(cell_len(line) <= width for line in lines)
        assert bars[0] > 10 or width < 50


def test_of_ones_own() -> None:
    assert isinstance(SAMPLES["SVD"], Result)
    u, s, v = SAMPLES["SVD"]
    assert (u.shape[1], len(v)) == (len(s), len(s))
