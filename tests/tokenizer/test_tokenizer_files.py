"""The files of a folder that make a tokenizer, against transformers and SentencePiece."""

import base64
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tiny
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import BYTES, CORPUS, TEXTS, read, template, varied_texts
from transformers.integrations.mistral.tokenizer import MistralConverter

from jaxlin.checkpoint.folder import TOKENIZER_FILES
from jaxlin.common.errors import TokenizerError
from jaxlin.tokenizer import read_tokenizer
from jaxlin.tokenizer.byte_tokens import spell_bytes
from jaxlin.tokenizer.pre_tokenizers import CL100K, TEKKEN


@pytest.fixture(scope="module")
def bpe() -> dict[str, Any]:
    """A small byte-level tokenizer.json with four special tokens."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer, backend.decoder = BYTES(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<mask>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=BYTES.alphabet(), show_progress=False, special_tokens=special
    )
    backend.train_from_iterator(CORPUS, trainer)
    return json.loads(backend.to_str())


MARKS = ["<s>", "</s>", "<mask>", "<new>", "<|turn|>", "[X]", "the"]
SENTENCES = ["a <s> b", "the <mask> dog  <new>  x", "<|turn|>user [X]the other<mask> z", "</s>the </s>  [X]  q <new>"]


def drawn_files(draw: random.Random) -> dict[str, Any]:
    """tokenizer_config.json and, at times, the older files, with tokens and flags in any of the places they may be."""

    def flags(text: str) -> dict[str, Any]:
        names = ("lstrip", "rstrip", "single_word", "normalized", "special")
        return {"content": text, **{name: draw.random() < 0.4 for name in names if draw.random() < 0.7}}

    marks = draw.sample(MARKS, len(MARKS))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key in ("bos_token", "eos_token", "pad_token", "image_token", "unk_token"):
        if draw.random() < 0.4:
            mark = marks.pop()
            config[key] = mark if draw.random() < 0.5 else {**flags(mark), "__type": "AddedToken"}
    if draw.random() < 0.4:
        ids = draw.sample([0, 1, 5, 500, 501, 600], 3)
        config["added_tokens_decoder"] = {
            str(i): flags(mark) for i, mark in zip(ids, draw.sample(MARKS, 3), strict=True)
        }
    if draw.random() < 0.4:
        config[draw.choice(["additional_special_tokens", "extra_special_tokens"])] = draw.sample(MARKS, 2)
    files = {"tokenizer_config.json": config}
    if draw.random() < 0.4:
        files["special_tokens_map.json"] = {"bos_token": flags(draw.choice(MARKS)), "eos_token": draw.choice(MARKS)}
    if draw.random() < 0.3:
        files["added_tokens.json"] = dict(zip(draw.sample(MARKS, 2), (500, 501), strict=True))
    return files


def test_special_tokens_beside_it(bpe: dict[str, Any], tmp_path: Path) -> None:
    """Whatever file says it: transformers' ids, BOS and EOS."""
    draw = random.Random(2)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for case in range(60):
        for name in TOKENIZER_FILES:
            (tmp_path / name).unlink(missing_ok=True)
        files = {"tokenizer.json": bpe, **drawn_files(draw)}
        for name, value in files.items():
            (tmp_path / name).write_text(json.dumps(value))
        ours, reference = read(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert (ours.bos_id, ours.eos_id) == (reference.bos_token_id, reference.eos_token_id), (case, files)
        for text in SENTENCES:
            assert ours.encode(text) == reference(text).input_ids, (case, text, files)


def test_a_bos_that_only_the_older_file_names(bpe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe))
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>", "rstrip": true}}')
    assert read(tmp_path).bos_id == 1


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("put", [True, False])
def test_the_post_processor_decides_on_bos(
    asked: bool, put: bool, bpe: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = {**bpe, "post_processor": template("<s>", 1) if put else None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": asked}))
    assert read(tmp_path).encode("a")[:1] == ([1] if put else [read(tmp_path).to_single_token("a")])
    said = [record.getMessage() for record in caplog.records]
    assert all("post-processor" in text and f"add_bos_token: {str(asked).lower()}" in text for text in said)
    assert bool(said) == (asked != put)


def test_the_wrong_pattern_of_tekken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A vocabulary of Tekken that is split at another pattern: the ids of `fix_mistral_regex`."""
    marks = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]"]
    letters, pairs = BYTES.alphabet(), ["mL", "eB", "Na", "OH", "pH", "ay"]
    vocabulary = [*marks, *sorted(letters), *pairs, *(f"filler {i}" for i in range(100_001))]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(vocabulary)}, [tuple(pair) for pair in pairs])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(CL100K), "isolated"),
            BYTES(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.add_special_tokens(marks)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "transformers_version": "4.50.0"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    ours = read(tmp_path)
    load = transformers.AutoTokenizer.from_pretrained
    right, wrong = load(tmp_path, fix_mistral_regex=True), load(tmp_path)
    for text in ["eBay mL NaOH pH", *TEXTS]:
        assert ours.encode(text) == right(text, add_special_tokens=False).input_ids
    assert ours.encode("eBay mL NaOH pH") != wrong("eBay mL NaOH pH", add_special_tokens=False).input_ids
    assert "its pattern is not that with which" in caplog.text


def test_tekken(bpe: dict[str, Any], tmp_path: Path) -> None:
    """tekken.json alone: the ids of transformers' converter, and BOS before them."""
    tokens = sorted(bpe["model"]["vocab"], key=bpe["model"]["vocab"].get)[4:]
    alphabet = {spell_bytes(bytes([byte])): byte for byte in range(256)}
    words = [bytes(alphabet[character] for character in token) for token in tokens]
    file = {
        "config": {"pattern": TEKKEN, "default_vocab_size": 480, "default_num_special_tokens": 20, "version": "v7"},
        "vocab": [{"rank": i, "token_bytes": base64.b64encode(word).decode()} for i, word in enumerate(words)],
        "special_tokens": [
            {"rank": i, "token_str": text, "is_control": True}
            for i, text in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
        ],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    ours, reference = read(tmp_path), MistralConverter(str(tmp_path / "tekken.json")).converted()
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 2, 480)
    assert ours.token(19) == "<SPECIAL_19>"
    for text in [*varied_texts(), "[INST] x[/INST]", "eBay mL NaOH pH"]:
        assert ours.encode(text) == [1, *reference.encode(text).ids], text
    for broken in ({"config": {}}, {**file, "vocab": [{"rank": 0}]}, {**file, "vocab": 3}):
        (tmp_path / "tekken.json").write_text(json.dumps(broken))
        with pytest.raises(TokenizerError, match=r"tekken.json: expected a tekken.json; found"):
            read(tmp_path)


@pytest.fixture(scope="module")
def piece_model() -> Callable[..., bytes]:
    """A small SentencePiece model."""

    def made(**options: Any) -> bytes:
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS[0].splitlines()),
            model_writer=out,
            model_type=options.pop("model_type", "bpe"),
            vocab_size=600,
            byte_fallback=True,
            normalization_rule_name=options.pop("rule", "identity"),
            remove_extra_whitespaces=False,
            minloglevel=2,
            **options,
        )
        return out.getvalue()

    return made


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_model(prefix: bool, piece_model: Callable[..., bytes], tmp_path: Path) -> None:
    """tokenizer.model alone: SentencePiece's ids."""
    symbols = ["<turn>", "\u2581\u2581\u2581"] if not prefix else ["<turn>"]
    data = piece_model(add_dummy_prefix=prefix, user_defined_symbols=symbols)
    (tmp_path / "tokenizer.model").write_bytes(data)
    ours, reference = read(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=data)
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 2, reference.vocab_size())
    texts = [*varied_texts(), "a    b     c"]
    for text in texts:
        if "\0" not in text:
            ids = reference.encode(text)
            assert ours.encode(text) == [1, *ids], text
            assert ours.decode(ids) == reference.decode(ids)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert read(tmp_path).encode("a") == reference.encode("a")


def test_sentencepiece_models_that_are_refused(piece_model: Callable[..., bytes], tmp_path: Path) -> None:
    data = piece_model()
    for broken, message in (
        (b"", "no pieces"),
        (b"\xff" * 50, "expected a SentencePiece model; found"),
        (data[: len(data) // 2], "found"),
        (piece_model(model_type="unigram"), "of type 2, BPE; found 1"),
        (piece_model(rule="nmt_nfkc"), "does not normalise characters and spaces"),
    ):
        (tmp_path / "tokenizer.model").write_bytes(broken)
        with pytest.raises(TokenizerError, match=message):
            read(tmp_path)


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_a_sentencepiece_model_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(TokenizerError):
        read_tokenizer({"tokenizer.model": path}, "any")


CHAIN = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}] * 3
HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": {"type": "Sequence", "normalizers": CHAIN}}, "process for it died|seconds of work|memory"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "expected a tokenizer"),
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "expected a tokenizer"),
    ({"decoder": {"type": "Strip", "content": "a", "start": 2**63, "stop": 2**63}}, "expected a tokenizer"),
    ({"decoder": {"type": "Sequence", "decoders": CHAIN}}, "process for it died|seconds of work|memory"),
    ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "expected a tokenizer"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_a_tokenizer_that_would_end_the_process(
    change: dict[str, Any], message: str, bpe: dict[str, Any], tmp_path: Path
) -> None:
    """Aborts, panics and memory beyond bounds are an error of this process, which goes on."""
    (tmp_path / "tokenizer.json").write_text(json.dumps({**bpe, **change}))
    with pytest.raises(TokenizerError, match=message):
        read(tmp_path)


def test_a_pattern_that_takes_years(bpe: dict[str, Any], tmp_path: Path) -> None:
    """It works, in a process of its own, until a text makes it too slow; ordinary files have no process."""
    split = {"type": "Split", "pattern": {"Regex": r"(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**bpe, "pre_tokenizer": split}))
    slow = read(tmp_path)
    ids = slow.encode("abc")
    assert slow.decode(ids) == "abc"
    assert slow.to_str_tokens(ids) == ["a", "b", "c"] or "".join(slow.to_str_tokens(ids)) == "abc"
    with pytest.raises(TokenizerError, match="expected tokens for each part of 'xxx"):
        slow.encode("x" * 5000)
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    read(tmp_path)
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_bytes_of_characters(bpe: dict[str, Any], tmp_path: Path) -> None:
    """Tokens that are a part of a character can be told apart, and put together again."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe))
    tokenizer = read(tmp_path)
    assert tokenizer.to_str_tokens("\u4f60") == ["<0xE4>", "<0xBD>", "<0xA0>"]
    assert "".join(tokenizer.to_str_tokens("a\ufffdb")).count("<0x") in (0, 3)
    for ids in ([-1], [2**40]):
        with pytest.raises(TokenizerError):
            tokenizer.decode(ids)
    assert tokenizer.decode(np.array([5])) == tokenizer.decode([5])


def test_a_small_tokenizer_stays_as_it_is(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    once = read(tmp_path)
    (tmp_path / "tokenizer.json").write_text(once.to_json())
    assert read(tmp_path).encode("abc") == once.encode("abc")
