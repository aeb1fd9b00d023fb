"""Which matrix gives the logits, and under which names: every case against transformers, on one checkpoint a port.

Only the head differs between the cases of a port, so the residual stream is computed once and each case costs a load.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracle
import pytest
import tiny
import torch
import transformers
from unembedding_files import (
    CASES,
    DOUBLE,
    PORTS,
    WRAPPERS,
    Checkpoint,
    Stream,
    claiming,
    difference,
    placed,
    random_head,
)

import jaxlin
from jaxlin.common.errors import CheckpointError, UnembeddingError
from jaxlin.loading import unembedding
from jaxlin.quantized import Int8
from jaxlin.spectrum import words


def assert_equal_logits(folder: Path, stream: Stream) -> jaxlin.Decoder:
    """The model, whose logits are those of transformers."""
    model, worst = difference(folder, stream)
    assert worst <= (1e-10 if jax.config.jax_enable_x64 else 2e-5)
    return model


@pytest.mark.parametrize("name", [*PORTS, *DOUBLE])
def test_the_head_is_what_is_stored(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name in DOUBLE:
        request.getfixturevalue("x64")
    stream = Stream()
    for claim, stored in CASES:
        folder = claiming(checkpoint(name), tmp_path / f"{claim}, {stored}", claim, stored)
        tied = getattr(transformers.AutoConfig.from_pretrained(folder), "tie_word_embeddings", False)
        if not tied and stored != "both":
            with pytest.raises(CheckpointError, match=r"expected a tensor \S*(lm_head|embed_\w+|wte)\.weight"):
                jaxlin.load(folder)
        else:
            model = assert_equal_logits(folder, stream)
            assert model.config.tie_word_embeddings == (tied and stored != "both")


def test_every_analysis_reads_the_head_that_is_stored(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a file that claims a tie and holds another head."""
    edited = Checkpoint(checkpoint("llama, tied"), tmp_path / "both")
    head = random_head(edited.tensors[edited.embedding].shape)
    edited.tensors["lm_head.weight"] = head
    folder = edited.write()
    logits = oracle.logits(folder, tiny.IDS, torch.float32)[-1]
    model, tokenizer = jaxlin.load(folder)
    x = model.embed(tiny.IDS)
    target = int(logits.argmax())
    assert float(jaxlin.attribute(model, x, target).value) == pytest.approx(logits[target], abs=2e-5)
    np.testing.assert_allclose(jaxlin.steering.token_direction(model, target), head[target], rtol=1e-6)
    u = np.random.default_rng(0).normal(size=64).astype(np.float32)
    assert words.promoted_tokens(model, u, 3).ids.tolist() == np.argsort(-head @ u)[:3].tolist()
    reading = jaxlin.lens.read(model, x)
    assert int(np.asarray(reading.ids)[-1, -1, 0]) == target
    explanation = jaxlin.explain(model, tokenizer, tiny.IDS)
    assert explanation.logit == pytest.approx(logits[target], abs=2e-5)
    assert jaxlin.generate(model, tokenizer, tiny.IDS, 1).tokens[-1] == target


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_matrices_are_compared_by_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal values in other dtypes and formats are equal; one value that differs, in any block, is seen."""
    codes = np.arange(-10, 10, dtype=np.int8).reshape(5, 4)
    packed = Int8(codes, np.full(5, 127, np.float32))
    plain = np.asarray(packed[...])
    matrices = {"packed": packed, "plain": plain, "wide": plain.astype(np.float64), "short": plain[:4]}
    matrices |= {str(row): np.where(np.arange(5)[:, None] == row, plain + 1, plain) for row in range(5)}

    class Stub(dict[str, Any]):
        """Matrices as a checkpoint gives them."""

        def names(self) -> list[str]:
            return list(self)

        def shape(self, name: str) -> tuple[int, ...]:
            return self[name].shape

        def is_packed(self, name: str) -> bool:
            return isinstance(self[name], Int8)

        def read(self, name: str) -> Any:
            return self[name]

        def read_rows(self, name: str, start: int, stop: int) -> Any:
            assert stop - start <= rows
            return self[name][start:stop]

        def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
            return self[name][index]

        def read_expert(self, name: str, expert: int) -> Any:
            raise KeyError(f"{name} has no expert {expert}")

    monkeypatch.setattr(unembedding, "MAX_COMPARED", 4 * rows)
    stub: Any = Stub(matrices)
    assert all(unembedding.are_equal(stub, one, other) for one, other in (("packed", "plain"), ("plain", "wide")))
    assert not any(unembedding.are_equal(stub, "packed", other) for other in ("short", *map(str, range(5))))


class TestNames:
    """The names that one architecture's tensors have had."""

    @pytest.mark.parametrize("tied", [True, False])
    def test_a_file_of_the_base_class(self, tied: bool, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        edited = Checkpoint(checkpoint("llama, tied" if tied else "llama"), tmp_path / "base")
        edited.rename(lambda name: name.removeprefix("model."))
        assert_equal_logits(edited.write(), Stream())

    @pytest.mark.parametrize("name", WRAPPERS)
    def test_wrappers(self, name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        stream = Stream()
        for places in WRAPPERS[name]:
            assert_equal_logits(placed(checkpoint(name), tmp_path / "".join(places), *places), stream)

    def test_a_flat_config(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        """The text half's keys beside the wrapper's, as transformers 4 wrote them; unread beside a text half."""
        stream = Stream()
        edited = Checkpoint(checkpoint("qwen2_vl"), tmp_path / "flat")
        text = edited.config.pop("text_config")
        rope = {"rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
        numbers = {key: value for key, value in text.items() if key not in ("model_type", "rope_parameters")}
        edited.config |= {**numbers, **rope}
        assert_equal_logits(edited.write(), stream)
        edited.config |= {"text_config": text, "num_attention_heads": 2, "rope_theta": 5.0}
        assert_equal_logits(edited.write(), stream)

    def test_names_of_two_kinds_are_refused(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        edited = Checkpoint(checkpoint("llama"), tmp_path / "two")
        edited.tensors["layers.0.mlp.up_proj.weight"] = edited.tensors["model.layers.0.mlp.up_proj.weight"].copy()
        with pytest.raises(CheckpointError, match=r"one model; found some as model\.layers\.\* and as layers\.\*"):
            jaxlin.load(edited.write())

    @pytest.mark.parametrize("name", ["mistral", "phi"])
    def test_a_buffer_of_old_files_is_left_out(
        self, name: str, checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        edited = Checkpoint(checkpoint(name), tmp_path / "old")
        edited.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
        jaxlin.load(edited.write())
        assert "left out 1 tensors *.rotary_emb.inv_freq" in caplog.text


def test_a_single_file_goes_before_shards(
    checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edited = Checkpoint(checkpoint("llama"), tmp_path / "both")
    edited.tensors["lm_head.weight"] = random_head(edited.tensors["lm_head.weight"].shape)
    folder = edited.write()
    for file in checkpoint("llama, shards").glob("model*.safetensors*"):
        shutil.copy(file, folder)
    assert_equal_logits(folder, Stream())
    assert "model.safetensors is read" in caplog.text


class TestNoUnembedding:
    """Embedding models and classifiers: the decoder is there, and no logits."""

    @pytest.fixture
    def edited(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> Checkpoint:
        """A Llama without a head."""
        edited = Checkpoint(checkpoint("llama"), tmp_path / "none")
        del edited.tensors["lm_head.weight"]
        return edited

    def test_everything_but_logits_works(self, edited: Checkpoint, checkpoint: Callable[[str], Path]) -> None:
        edited.rename(lambda name: name.removeprefix("model."))
        edited.config["architectures"] = ["LlamaModel"]
        model, tokenizer = jaxlin.load(edited.write())
        x = model.embed(tiny.IDS)
        with_head, _ = jaxlin.load(checkpoint("llama"))
        np.testing.assert_array_equal(model(x), with_head(x))
        lmap = jaxlin.local_map(model, x)
        assert lmap.residual < 3e-6
        direction = np.ones(64, np.float32)
        assert float(jaxlin.attribute(model, x, direction).value) == pytest.approx(float(lmap.output.sum()), abs=1e-5)
        for asks in (
            lambda: model.unembed(lmap.output),
            lambda: jaxlin.attribute(model, x, target=5),
            lambda: words.promoted_tokens(model, lmap.output),
            lambda: jaxlin.generate(model, tokenizer, tiny.IDS, 2),
        ):
            with pytest.raises(UnembeddingError, match=r"checkpoint has none.*local linear map.*still work"):
                asks()

    @pytest.mark.parametrize(
        "rest", [{"score.weight": (2, 64)}, {"classifier.weight": (3, 64), "classifier.bias": (3,)}]
    )
    def test_a_classifier(
        self, rest: Mapping[str, tuple[int, ...]], edited: Checkpoint, caplog: pytest.LogCaptureFixture
    ) -> None:
        edited.config["architectures"] = ["LlamaForSequenceClassification"]
        edited.tensors |= {name: np.ones(shape, np.float32) for name, shape in rest.items()}
        model, _ = jaxlin.load(edited.write())
        assert model.lm_head is None
        assert "no unembedding, but the head of a classifier or reward model" in caplog.text

    def test_a_language_model_that_lacks_its_head_is_refused(self, edited: Checkpoint) -> None:
        with pytest.raises(
            CheckpointError, match=r"expected a tensor lm_head\.weight; found none, and the config does"
        ):
            jaxlin.load(edited.write())

    def test_a_value_head_beside_the_unembedding(
        self, checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        edited = Checkpoint(checkpoint("llama"), tmp_path / "value")
        edited.tensors["v_head.summary.weight"] = np.ones((1, 64), np.float32)
        model, _ = jaxlin.load(edited.write())
        assert model.lm_head is not None
        assert "the value head of a training run" in caplog.text
