"""A short round of `benchmarks.fuzz`, and tests that it would see each kind of failure."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxlin
from benchmarks.fuzz import campaign, folders, ggufs, tokenizers
from benchmarks.fuzz.draws import Draw, json_text
from benchmarks.fuzz.readers import READERS, Reader, all_readers
from benchmarks.fuzz.samples import CONFIGS, tensors
from jaxlin.common.errors import JaxlinError
from jaxlin.tokenizer import Tokenizer

INPUTS = 15
"""Inputs for each reader, times its weight; a full round is ``python -m benchmarks.fuzz``."""

SLOW = {"folder": 8, "quantized": 8, "gguf_load": 8, "tokenizer": 10, "vocabulary": 12, "chat": 4}
"""Readers that take long, because they load a model or run a process."""


@pytest.mark.parametrize("name", all_readers())
def test_a_short_round(name: str) -> None:
    verdicts = [campaign.run(1, name, number) for number in range(SLOW.get(name, INPUTS * READERS[name].weight))]
    assert [verdict for verdict in verdicts if verdict.failed] == []
    assert Counter(verdict.kind for verdict in verdicts)["refused"] > 0


def test_an_input_is_made_again(tmp_path: Path) -> None:
    written = []
    for attempt in range(2):
        campaign.run(3, "gguf_header", 7, tmp_path / str(attempt))
        written.append((tmp_path / str(attempt) / "m.gguf").read_bytes())
    assert written[0] == written[1]
    campaign.run(4, "gguf_header", 7, tmp_path / "other")
    assert (tmp_path / "other" / "m.gguf").read_bytes() != written[0]


class TestSamples:
    """The samples that inputs are derived from are valid; otherwise all inputs would be refused for one reason."""

    @pytest.mark.parametrize("name", ["llama3", "gemma2", "phi", "olmo3", "llama4_text"])
    def test_folders(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
        (tmp_path / "model.safetensors").write_bytes(folders.file_bytes(Calm(), *folders.packed_bytes(tensors(name))))
        jaxlin.load(tmp_path)

    @pytest.mark.parametrize("method", folders.QUANTISATIONS)
    def test_quantised(self, method: str, tmp_path: Path) -> None:
        config, arrays = folders.quantised(method)
        (tmp_path / "config.json").write_text(json.dumps(config))
        header, data = folders.packed_bytes(folders.with_states(arrays))
        (tmp_path / "model.safetensors").write_bytes(folders.file_bytes(Calm(), header, data))
        jaxlin.load(tmp_path)

    @pytest.mark.parametrize("architecture", ggufs.ARCHITECTURES)
    def test_gguf(self, architecture: str, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(ggufs.file_bytes(*ggufs.sample(architecture)))
        _, tokenizer = jaxlin.load(tmp_path / "m.gguf")
        assert len(tokenizer.encode("a")) == 2

    def test_tokenizer(self, tmp_path: Path) -> None:
        files = {"tokenizer.json": tokenizers.SAMPLE, "tokenizer_config.json": {"bos_token": "<s>"}}
        for name, content in {**files, "generation_config.json": {}}.items():
            (tmp_path / name).write_text(json_text(content))
        assert Tokenizer.from_files(*(tmp_path / name for name in (*files, "generation_config.json"))).encode("he") == [
            0,
            29,
        ]


class Calm(Draw):
    """A draw that changes nothing."""

    def rarely(self, share: float = 0.1) -> bool:
        return False


def _raise(error: BaseException) -> Callable[[], Any]:
    def read() -> None:
        raise error

    return read


def _open(name: str) -> Callable[[], Any]:
    def read() -> None:
        Path(name).read_bytes()

    return read


def _loop() -> None:
    while True:
        pass


def _message() -> None:
    error = JaxlinError("x")
    error.args = ("a\x1b[31m",)  # as if the base class did not see to it
    raise error


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda: None, "accepted"),
        (_raise(JaxlinError("damaged")), "refused"),
        (_raise(KeyError("a")), "raw"),
        (_raise(RecursionError()), "raw"),
        (_message, "message"),
        (_loop, "endless"),
        (lambda: np.ones(400 * 2**20, np.uint8), "memory"),  # beyond what the system may reclaim meanwhile
        (_open("/etc/hostname"), "escape"),
    ],
)
def test_what_counts_as_a_failure(read: Callable[[], Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "one", Reader(1, lambda draw, folder: read))
    # A busy machine may take seconds to give the memory that one of these takes.
    monkeypatch.setattr(campaign, "SECONDS", 1.0 if kind == "endless" else 60.0)
    monkeypatch.setattr(campaign, "GROWTH", 20 * 2**20)
    verdict = campaign.run(0, "one", 0)
    assert (verdict.kind, verdict.failed) == (kind, kind not in ("accepted", "refused"))


def test_a_worker_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its input is reported, and another worker continues with the next one."""
    monkeypatch.setattr(campaign, "work", _deadly)
    verdicts = list(campaign.campaign(0, ["config"], first=0, inputs=4, minutes=1))
    assert [(verdict.number, verdict.kind) for verdict in verdicts] == [
        (0, "accepted"),
        (1, "dead"),
        (2, "accepted"),
        (3, "dead"),
    ]


def _deadly(connection: Any, seed: int, names: list[str], first: int, skip: int) -> None:
    import os

    for number in (skip, skip + 1):
        connection.send(("config", number))
        if number % 2:
            os._exit(7)
        connection.send(campaign.Verdict("config", number, "accepted"))
