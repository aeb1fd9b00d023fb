"""The paper's figures: their numbers against dense computations, their files, and the folder they are in."""

import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import jaxlin_command
from matplotlib.image import imread

import jaxlin
from jaxlin.linearize.linalg.triplets import stable_rank
from jaxlin.report.paper import PARTS, PaperError, check_output, redraw, reproduce, shipped_phrases
from jaxlin.report.paper.style import label
from jaxlin.spectrum import layer_spectra as depth
from jaxlin.steering.generation import generate_batch

TEXT, STEER, PHRASES = "the bridge", "the gate", ["a cat", "two $ a$", "the end"]
FIGURES = {part.name for part in PARTS if part.draw}
TABLES = {part.name for part in PARTS if part.markdown}


@pytest.fixture(scope="module")
def tiny(checkpoint: Callable[[str], Path]) -> tuple[jaxlin.Decoder, jaxlin.Tokenizer]:
    return jaxlin.load(checkpoint("llama"), linearize=True)


@pytest.fixture(scope="module")
def made(tiny: tuple[jaxlin.Decoder, jaxlin.Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("paper") / "run"
    assert run(tiny, out) == out / "README.md"
    return out


@pytest.fixture(scope="module")
def dense(tiny: tuple[jaxlin.Decoder, jaxlin.Tokenizer]) -> np.ndarray:
    """The map by forward differentiation of the linearised model."""
    model, tokenizer = tiny
    x = model.embed(tokenizer.encode(TEXT))
    return np.asarray(jax.jit(jax.jacfwd(lambda model, x: model(x)[-1], argnums=1))(model, x), np.float64)


def run(loaded: tuple[jaxlin.Decoder, jaxlin.Tokenizer], out: Path, text: str = TEXT, **options: Any) -> Path:
    return reproduce(*loaded, text, out=out, steer=STEER, phrases=PHRASES, progress=False, **options)


def data_of(out: Path, name: str) -> Any:
    return json.loads((out / f"{name}.json").read_text())["data"]


def logits_of(model: jaxlin.Decoder, u: np.ndarray) -> np.ndarray:
    return np.asarray(model.unembed(jnp.asarray(u, jnp.float32)))


def singular(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix.reshape(len(matrix), -1), compute_uv=False)


class TestNumbers:
    """Every number that is drawn."""

    def test_reconstruction(self, made: Path, tiny: Any, dense: np.ndarray, checkpoint: Callable[[str], Path]) -> None:
        model, tokenizer = tiny
        found, x = data_of(made, "figure_1b"), model.embed(tokenizer.encode(TEXT))
        output = np.asarray(model(x)[-1])
        plain, _ = jaxlin.load(checkpoint("llama"))
        ordinary = jax.jit(jax.jacfwd(lambda model, x: model(x)[-1], argnums=1))(plain, x)
        np.testing.assert_allclose(found["output"], output, rtol=1e-6)
        np.testing.assert_allclose(found["local_map"], np.einsum("dte,te->d", dense, x), atol=1e-5)
        product = np.einsum("dte,te->d", np.asarray(ordinary, np.float64), x)
        np.testing.assert_allclose(found["ordinary"], product, atol=1e-5)
        assert 0 < found["residual_local_map"] <= 3e-6
        # The residual is of the output that the map was recorded with, which another program rounds otherwise.
        missed = np.linalg.norm(np.subtract(found["local_map"], found["output"])) / np.linalg.norm(found["output"])
        np.testing.assert_allclose(found["residual_local_map"], missed, rtol=0.05)
        missed = np.linalg.norm(product - output) / np.linalg.norm(output)
        np.testing.assert_allclose(found["residual_ordinary"], missed, rtol=1e-4)

    def test_columns_and_rows(self, made: Path, tiny: Any, dense: np.ndarray) -> None:
        model, tokenizer = tiny
        found = data_of(made, "figure_2a")
        columns, rows = np.linalg.norm(dense, axis=0), np.linalg.norm(dense, axis=2).T
        np.testing.assert_allclose(found["column_norms"], columns, rtol=1e-4)
        np.testing.assert_allclose(found["row_norms"], rows, rtol=1e-4)
        f = np.asarray(model(model.embed(tokenizer.encode(TEXT)))[-1])
        table = np.asarray(model.embed_tokens.weight[...])
        table = table / np.linalg.norm(table, axis=1, keepdims=True)
        for t in range(len(columns)):
            column, row = found["columns"][t][0], found["rows"][t][0]
            assert column["feature"] == np.argmax(columns[t])
            # By the rows' own norms, which in this model are not in the order of the columns'.
            assert row["feature"] == np.argmax(rows[t])
            direction = dense[:, t, column["feature"]]
            logits = logits_of(model, direction * np.sign(direction @ f))
            assert column["words"][0] == tokenizer.token(int(np.argmax(logits)))
            assert column["opposite"][0] == tokenizer.token(int(np.argmin(logits)))
            cosines = table @ dense[row["feature"], t] * np.sign(f[row["feature"]])
            assert row["words"][0] == tokenizer.token(int(np.argmax(cosines)))
        assert np.argmax(columns[0]) != np.argmax(rows[0])

    def test_spectra_of_tokens(self, made: Path, tiny: Any, dense: np.ndarray) -> None:
        model, tokenizer = tiny
        f = np.asarray(model(model.embed(tokenizer.encode(TEXT)))[-1])
        for t, found in enumerate(data_of(made, "figure_2b")["maps"]):
            u, s, _ = np.linalg.svd(dense[:, t])
            np.testing.assert_allclose(found["values"], s[:24], rtol=1e-4)
            np.testing.assert_allclose(found["stable_rank"], np.sum(s**2) / s[0] ** 2, rtol=1e-4)
            logits = logits_of(model, u[:, 0] * np.sign(u[:, 0] @ f))
            assert found["promotes"][0][0] == tokenizer.token(int(np.argmax(logits)))

    def test_phrases(self, made: Path, tiny: Any) -> None:
        model, tokenizer = tiny
        found = data_of(made, "figure_3")
        assert [each["phrase"] for each in found["phrases"]] == PHRASES
        for each in found["phrases"]:
            lmap = jaxlin.local_map(model, model.embed(tokenizer.encode(each["phrase"])))
            jacobian = np.asarray(lmap.jacobian(), np.float64)
            ranks = [stable_rank(singular(jacobian[:, t])) for t in range(jacobian.shape[1])]
            np.testing.assert_allclose(each["stable_rank"], ranks, rtol=1e-4)
            np.testing.assert_allclose(each["joint_stable_rank"], stable_rank(singular(jacobian)), rtol=1e-4)
        last = found["positions"][-1]
        assert last["stable_rank"] == [each["stable_rank"][-1] for each in found["phrases"]]
        np.testing.assert_allclose(last["mean"], np.mean(last["stable_rank"]))
        assert all(sum(each["counts"]) == len(each["stable_rank"]) for each in found["positions"])

    def test_layers(self, made: Path, tiny: Any, dense: np.ndarray) -> None:
        model, tokenizer = tiny
        x = model.embed(tokenizer.encode(TEXT))
        spectra, path = data_of(made, "figure_4a"), data_of(made, "figure_4b")["cosines"]
        together, alone = data_of(made, "figure_4c"), data_of(made, "figure_4d")
        f = np.asarray(jaxlin.local_map(model, x).output)
        leading = []
        for layer in (0, model.config.num_hidden_layers - 1):
            to_layer = jaxlin.local_map(model, x, target=("resid_post", layer))
            inverse = 1 / np.sqrt(np.mean(np.square(to_layer.output)) + model.config.norm_eps)
            scale = np.asarray(model.norm.weight[...]) * inverse
            cumulative = scale[:, None, None] * np.asarray(to_layer.jacobian(), np.float64)
            u, s, _ = np.linalg.svd(cumulative.reshape(len(scale), -1), full_matrices=False)
            leading.append((u[:, :2] * np.sign(f @ u[:, :2])[None]).T)
            np.testing.assert_allclose(spectra["first"][layer], s[0], rtol=1e-4)
            np.testing.assert_allclose(spectra["ratios"][layer], s[:48] / s[0], rtol=1e-4)
            for kind in depth.CONTRIBUTIONS:
                through = jaxlin.local_map(model, x, source=("resid_pre", layer), target=(kind, layer))
                jacobian = np.asarray(through.jacobian(), np.float64)
                found = alone[kind]
                np.testing.assert_allclose(found["stable_rank"][layer], stable_rank(singular(jacobian)), rtol=1e-4)
                rest = stable_rank(singular(jacobian[:, 1:]))
                np.testing.assert_allclose(found["without_first"][layer], rest, rtol=1e-4)
            rank = together["resid_post"]["stable_rank"][layer]
            np.testing.assert_allclose(rank, stable_rank(s), rtol=1e-4)
        cosines = np.einsum("lnd,nd->ln", np.stack(leading), leading[-1])
        np.testing.assert_allclose([path[0], path[-1]], cosines, atol=1e-3)
        np.testing.assert_allclose(singular(dense)[0], spectra["first"][-1], rtol=1e-4)

    def test_words_by_layer(self, made: Path, tiny: Any, dense: np.ndarray) -> None:
        model, tokenizer = tiny
        found = data_of(made, "table_1")
        tokens = dense.shape[1]
        assert found["of"] == [None, 0, 1, 2, tokens - 1]
        with pytest.raises(jaxlin.JaxlinError, match="Single tokens: expected positions in"):
            depth.cumulative_spectra(model, model.embed(tokenizer.encode(TEXT)), single_tokens=(tokens,))
        f = np.asarray(model(model.embed(tokenizer.encode(TEXT)))[-1])
        for of, layers in zip(found["of"], found["promotes"], strict=True):
            matrix = dense.reshape(len(dense), -1) if of is None else dense[:, of]
            u = np.linalg.svd(matrix, full_matrices=False)[0][:, :3]
            logits = logits_of(model, (u * np.sign(f @ u)[None]).T)
            assert [words[0] for words in layers[-1]] == [tokenizer.token(int(i)) for i in np.argmax(logits, axis=-1)]

    def test_baselines(self, made: Path, dense: np.ndarray) -> None:
        found = data_of(made, "table_baselines")
        held = found["rows"][0]
        np.testing.assert_allclose(held["largest"], singular(dense)[0], rtol=1e-4)
        np.testing.assert_allclose(held["ranks"]["stable"], stable_rank(singular(dense)), rtol=1e-4)
        np.testing.assert_allclose(held["without_first"]["stable"], stable_rank(singular(dense[:, 1:])), rtol=1e-4)
        assert len(found["rows"]) == 5
        assert found["seed"] == 0

    def test_steering(self, made: Path, tiny: Any) -> None:
        """The untouched texts are those of plain generation; of each operator, the rows are those of a dose curve."""
        model, tokenizer = tiny
        found = data_of(made, "table_2")
        rows = found["rows"]
        assert (found["phrase"], found["layer"], found["prompts"]) == (STEER, 3, PHRASES)
        names = ["equation 16", "the paper's code", "the phrase's activation", "the target's unembedding"]
        names.append("a random direction")
        assert [row["operator"] for row in rows] == ["untouched", *(name for name in names for _ in range(4))]
        plain = generate_batch(model, tokenizer, PHRASES, found["max_new_tokens"])
        assert rows[0]["texts"] == [each.text for each in plain]
        assert rows[0]["strength"] == 0
        assert abs(rows[0]["kl"]) < 1e-9
        x = model.embed(tokenizer.encode(STEER))
        logits = logits_of(model, np.asarray(model(x)[-1]))
        letters = [i for i in range(len(logits)) if tokenizer.token(i).strip().isalpha()]
        target = max(letters, key=lambda i: logits[i])  # "gate" is four tokens here
        assert found["target"] == tokenizer.token(target).strip()
        edit = jaxlin.steering.paper_equation(model, x, found["layer"])
        expected = jaxlin.steering.dose_curve(model, tokenizer, edit, PHRASES, target, [0.75], max_new_tokens=24)
        assert (rows[3]["operator"], rows[3]["strength"], rows[3]["texts"]) == (names[0], 0.75, expected.texts[0])
        np.testing.assert_allclose(rows[3]["kl"], expected.kl[0], rtol=1e-4)
        np.testing.assert_allclose(rows[3]["probability"], expected.target_probability[0], rtol=1e-4)


class TestFiles:
    """What lies in the folder."""

    def test_all_are_there(self, made: Path) -> None:
        expected = {"run.json", "README.md"} | {f"{part.name}.json" for part in PARTS}
        expected |= {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")}
        expected |= {f"{name}.md" for name in TABLES}
        assert {path.name for path in made.iterdir()} == expected

    def test_figures(self, made: Path) -> None:
        for name in FIGURES:
            image = imread(made / f"{name}.png")
            assert min(image.shape[:2]) > 400
            assert 0.01 < np.mean(image[:, :, :3].min(axis=-1) < 0.9) < 0.5
            root = ElementTree.parse(made / f"{name}.svg").getroot()
            assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20

    def test_provenance(self, made: Path) -> None:
        settings = json.loads((made / "run.json").read_text())["settings"]
        assert (settings["text"], settings["dtype"], settings["rule"], settings["seed"]) == (TEXT, "float32", "gate", 0)
        for part in PARTS:
            document = json.loads((made / f"{part.name}.json").read_text())
            assert document["settings"] == settings
            assert set(document["versions"]) == {"jaxlin", "jax", "flax", "numpy"}
            assert [token[-1] for token in document["tokens"]][-len(TEXT) :] == list(TEXT)

    def test_captions_say_the_numbers(self, made: Path) -> None:
        index = (made / "README.md").read_text()
        ranks = data_of(made, "figure_4c")["resid_post"]["stable_rank"]
        assert f"from {ranks[0]:.3g} at layer 1 to {ranks[-1]:.3g} at layer {len(ranks)}" in index
        assert f"{data_of(made, 'figure_1b')['residual_ordinary']:.2g} of that norm" in index
        assert all(f"({part.name}.json)" in index for part in PARTS)

    def test_shipped_phrases(self) -> None:
        phrases = shipped_phrases()
        assert len(set(phrases)) == len(phrases) == 100
        assert all(3 <= len(phrase.split()) <= 8 and phrase == phrase.strip() for phrase in phrases)

    def test_signs_that_the_font_lacks(self) -> None:
        assert label("a$b") == r"a\$b"
        assert label(" 日") == "·□"
        assert label("x" * 40) == "x" * 13 + "…"


class TestFolder:
    """A run goes on where it stopped, and nowhere else."""

    def test_what_is_finished_is_not_computed_again(
        self, made: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times = {path.name: path.stat().st_mtime_ns for path in made.glob("figure_*.json")}
        before = (made / "figure_4b.json").read_bytes()
        drawn = (made / "figure_4b.svg").read_bytes()
        (made / "figure_4b.json").unlink()
        run(tiny, made)
        assert (made / "figure_4b.json").read_bytes() == before
        assert (made / "figure_4b.svg").read_bytes() == drawn
        again = {path.name: path.stat().st_mtime_ns for path in made.glob("figure_*.json")}
        assert {name for name in times if again[name] != times[name]} == {"figure_4b.json"}

    def test_phrases_go_on(self, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from jaxlin.report.paper import figure_3, reproduction

        monkeypatch.setattr(reproduction, "PARTS", (figure_3.PART,))
        count, measured = 0, figure_3._ranks

        def interrupted(subject: Any, phrase: str) -> Any:
            nonlocal count
            count += 1
            if count == 3:
                raise KeyboardInterrupt
            return measured(subject, phrase)

        monkeypatch.setattr(figure_3, "_ranks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"run.json", "figure_3.partial.json"}
        run(tiny, tmp_path)
        assert count == 4
        assert [each["phrase"] for each in data_of(tmp_path, "figure_3")["phrases"]] == PHRASES
        assert not (tmp_path / "figure_3.partial.json").exists()

    def test_drawing_needs_no_model(self, made: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jaxlin.Decoder, "scan", None)
        before = {path.name: path.read_bytes() for path in made.iterdir()}
        (made / "figure_1b.png").unlink()
        (made / "README.md").unlink()
        redraw(made)
        assert {path.name: path.read_bytes() for path in made.iterdir()} == before

    def test_another_run(self, made: Path, tiny: Any, checkpoint: Callable[[str], Path]) -> None:
        before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
        with pytest.raises(PaperError, match="this one has text 'another', not 'the bridge'"):
            run(tiny, made, "another")
        with pytest.raises(PaperError, match="phrases"):
            reproduce(tiny[0], tiny[1], TEXT, out=made, steer=STEER, phrases=["other"])
        other = jaxlin.load(checkpoint("qwen3"), linearize=True)
        with pytest.raises(PaperError, match="fingerprint"):
            run(other, made)
        assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before

    def test_places_that_are_none(self, made: Path, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "letter.txt").write_text("")
        (tmp_path / "run.json").write_text('{"settings": 3}')
        for place, found in (
            (tmp_path / "notes", "other files, letter.txt"),
            (tmp_path / "notes" / "letter.txt", "found a file"),
            (tmp_path / "notes" / "letter.txt" / "deeper", "found a file"),
            (tmp_path, "other files"),
            (tmp_path / "no" / "folder", "Make it first"),
            (Path("/proc/paper"), "can be (written|made)"),
        ):
            with pytest.raises(PaperError, match=found):
                run(tiny, place)
        with pytest.raises(PaperError, match="found none"):
            redraw(tmp_path / "nowhere")
        with pytest.raises(jaxlin.JaxlinError, match="one token or more"):
            run(tiny, tmp_path / "new", "")
        with pytest.raises(jaxlin.JaxlinError, match="this model's context"):
            run(tiny, tmp_path / "new", "word " * 500)
        with pytest.raises(jaxlin.JaxlinError, match="24 new ones"):
            reproduce(*tiny, TEXT, out=tmp_path / "new", phrases=["word" * 12])
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setattr("jaxlin.report.paper.style.find_spec", lambda name: None)
        with pytest.raises(PaperError, match="pip install matplotlib"):
            check_output(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_a_full_disk(self, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = {path.name: path.read_bytes() for path in made.iterdir()}

        def full(self: Path, content: bytes) -> None:
            with self.open("wb") as file:
                file.write(content[:100])
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(PaperError, match="No space left"):
            redraw(made)
        monkeypatch.undo()
        assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_one_token(
    tiny: tuple[jaxlin.Decoder, jaxlin.Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no map without the first token."""
    from jaxlin.report.paper import figure_2a, figure_4cd, reproduction, table_baselines

    monkeypatch.setattr(reproduction, "PARTS", (figure_2a.PART, figure_4cd.CUMULATIVE, table_baselines.PART))
    run(tiny, tmp_path, "a")
    assert data_of(tmp_path, "figure_4c")["resid_post"]["without_first"] is None
    assert "–" in (tmp_path / "table_baselines.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "other files"), (("--model", "./nowhere"), "other files")],
)
def test_errors_of_the_command(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("")
    done = jaxlin_command("paper", "--out", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
