"""Text to ids and back, against transformers where there is a reference."""

import json
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tokenizers
import transformers
from tokenizer_files import CORPUS, TEXTS, learned, varied_texts, write_vocabulary

from jaxlin.checkpoint import open_checkpoint
from jaxlin.common.errors import TokenizerError
from jaxlin.tokenizer import Tokenizer
from jaxlin.tokenizer.pre_tokenizers import GGUF_PRE_TOKENIZERS


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    """SmolLM2's tokenizer from its GGUF file."""
    return Tokenizer.from_gguf(open_checkpoint(smollm2_gguf).config)


@pytest.fixture(scope="module")
def reference(smollm2_gguf: Path) -> Any:
    """What transformers makes of the same file."""
    return transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)


@pytest.fixture
def characters(tmp_path: Path) -> Tokenizer:
    """A tokenizer of single characters with BOS and EOS."""
    tiny.write_tokenizer(tmp_path)
    return Tokenizer.from_files(tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json")


def test_the_ids_are_those_of_transformers(smollm2: Tokenizer, reference: Any) -> None:
    for text in TEXTS:
        assert smollm2.encode(text) == reference(text).input_ids, text
        assert smollm2.decode(smollm2.encode(text)) == text
    assert smollm2.encode(TEXTS[0]) == [504, 7395, 578, 282, 43749, 314, 260]
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.vocab_size) == (1, 2, 49152)
    assert smollm2.stop_ids == (2,)
    assert repr(smollm2) == "Tokenizer(49152 ids, bos_id=1, eos_id=2)"


def test_str_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.to_str_tokens("The bridge") == ["The", " bridge"]
    assert smollm2.to_str_tokens([504, 7395]) == ["The", " bridge"]
    assert smollm2.to_str_tokens(np.array([504, 7395])) == ["The", " bridge"]
    assert "".join(smollm2.to_str_tokens("plain words, and more")) == "plain words, and more"
    assert "".join(smollm2.to_str_tokens("👩‍👩‍👧")).startswith("<0xF0>")


def test_single_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.to_single_token(" bridge") == 7395
    for text in ("Golden Gate", ""):
        with pytest.raises(TokenizerError, match="expected one token; found"):
            smollm2.to_single_token(text)
    with pytest.raises(TokenizerError, match=r"' cathedral' is one\.$"):
        smollm2.to_single_token("cathedral")
    for text in ("Ashwoodly", " Ashwoodly"):  # several tokens either way
        with pytest.raises(TokenizerError, match=r"found \d: \[[^]]*\]\.$"):
            smollm2.to_single_token(text)


def test_bos(characters: Tokenizer) -> None:
    assert (characters.bos_id, characters.eos_id) == (1, 2)
    plain = characters.encode("ab")
    assert characters.encode("ab", prepend_bos=True) == [1, *plain]
    assert characters.encode("ab", prepend_bos=False) == plain
    with pytest.warns(UserWarning, match="doubled"):
        assert characters.encode("<s>ab", prepend_bos=True) == [1, 1, *plain]
    assert characters.encode("<s>ab") == [1, *plain]


def test_no_bos(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_files(tmp_path / "tokenizer.json")
    assert tokenizer.bos_id is None
    with pytest.raises(TokenizerError, match="this one has none"):
        tokenizer.encode("ab", prepend_bos=True)


def test_a_bos_outside_the_vocabulary(tmp_path: Path) -> None:
    """It becomes a token, as in transformers; the model has no embedding for it, and says so."""
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<begin>"}}')
    tokenizer = Tokenizer.from_files(tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json")
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (128, 129)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "llama"}, "'llama'"),
        ({"pre": "unheard-of"}, "unheard-of"),
        ({"tokens": None}, "lists of tokens"),
        ({"token_type": [1]}, "token types"),
        ({"merges": ["abc"]}, "two tokens"),
        ({"merges": ["never seen"]}, "known tokens"),
        ({"bos_token_id": 7}, "0..1"),
    ],
)
def test_gguf_metadata_that_does_not_fit(change: dict, message: str) -> None:
    metadata = {"model": "gpt2", "tokens": ["a", "b"], "merges": []} | change
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


def test_gguf_bos_is_put_before() -> None:
    metadata = {"model": "gpt2", "tokens": ["<s>", "a"], "merges": [], "token_type": [3, 1]}
    metadata |= {"bos_token_id": 0, "add_bos_token": True}
    tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert tokenizer.encode("a") == [0, 1]
    assert tokenizer.encode("a", prepend_bos=False) == [1]


def test_gguf_ends_of_turns() -> None:
    metadata = {"model": "gpt2", "tokens": ["</s>", "a", "<|eot|>", "<|eom|>"], "merges": []}
    metadata |= {"eos_token_id": 0, "eot_token_id": 2, "eom_token_id": 3}
    tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (0, (0, 2, 3))


def test_many_texts(smollm2: Tokenizer, reference: Any) -> None:
    compared = 0
    for text in varied_texts():
        assert smollm2.decode(smollm2.encode(text)) == text
        # transformers does not set numerals apart for this one; llama.cpp and the model's own tokenizer.json do.
        if not any(character.isnumeric() for character in text):
            assert smollm2.encode(text) == reference(text).input_ids, text
            compared += 1
    assert compared > 100
    assert smollm2.to_str_tokens("  12 half½") == ["  ", "1", "2", " half", "½"]


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-4o", "dbrx", "gpt-2", "smollm"])
def test_pre_tokenizers(pre: str, tmp_path: Path) -> None:
    """Each splits as transformers does, which composes no characters and sets no digits apart."""
    row = next(row for row in GGUF_PRE_TOKENIZERS if pre in row.names)
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokens, merges = learned(byte_level(add_prefix_space=False), byte_level.alphabet())
    metadata = {"pre": pre, "tokens": tokens, "merges": merges, "token_type": [1] * len(tokens)}
    write_vocabulary(tmp_path / "any.gguf", "gpt2", **metadata)
    ours = Tokenizer.from_gguf(open_checkpoint(tmp_path / "any.gguf").config)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="any.gguf")
    for text in varied_texts():
        if row.digits and any(character.isnumeric() for character in text):
            continue
        expected = unicodedata.normalize("NFC", text) if row.nfc else text
        assert ours.encode(text) == reference(expected, add_special_tokens=False).input_ids, text
        assert ours.decode(ours.encode(text)) == expected


@pytest.mark.parametrize("space", [True, False])
def test_sentencepiece(space: bool, tmp_path: Path) -> None:
    """Scores in place of merges, bytes for what is not in the vocabulary, a space before the text: as transformers."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [piece for piece in learned(tokenizers.pre_tokenizers.Metaspace(), [])[0] if piece not in tokens]
    tokens += pieces
    metadata = {
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": space,
    }
    write_vocabulary(tmp_path / "any.gguf", "llama", **metadata)
    ours = Tokenizer.from_gguf(open_checkpoint(tmp_path / "any.gguf").config)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="any.gguf")
    for text in varied_texts():
        ids = ours.encode(text)
        # transformers always puts the space, unless the text begins with one.
        if space or text.startswith(" "):
            assert ids == reference(text).input_ids, text
        assert ids[0] == ours.bos_id
        assert ours.encode(text, prepend_bos=False) == ids[1:]
        assert ours.decode(ids[1:]) == (text.removeprefix(" ") if space else text)
    assert "".join(ours.to_str_tokens("def test", prepend_bos=False)) == (" def test" if space else "def test")
    assert ours.token(1) == "<s>"
    assert ours.token(3 + 0xE2) == "<0xE2>"


def pieces_of(text: str, tokens: list[str], scores: list[float], atoms: list[str]) -> list[int]:
    """SentencePiece's BPE by its definition: whole atoms first, then the pair of the best score, leftmost, joined."""
    ids = {token: i for i, token in enumerate(tokens)}
    if not text:
        return []
    for atom in sorted(atoms, key=len, reverse=True):
        if atom in text:
            before, after = text.split(atom, 1)
            return [*pieces_of(before, tokens, scores, atoms), ids[atom], *pieces_of(after, tokens, scores, atoms)]
    pieces = list(text.replace(" ", "\u2581"))
    while True:
        joined = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in ids]
        if not joined:
            break
        at = -max(joined)[1]
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
    known = ([piece] if piece in ids else [f"<0x{byte:02X}>" for byte in piece.encode()] for piece in pieces)
    return [ids[piece] for found in known for piece in found]


def test_sentencepiece_of_gemma() -> None:
    """No space before the text, and runs of spaces and lines that are tokens of the user: by the definition."""
    atoms = ["  ", "    ", "\n\n", "\n", "<table>"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *atoms]
    learned_pieces = learned(tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never"), [])[0]
    pieces = [piece for piece in learned_pieces if piece not in tokens]
    kinds = [3, 3, 3, 2] + [6] * 256 + [4] * len(atoms) + [1] * len(pieces)
    scores = [0.0] * (260 + len(atoms)) + [-float(i) for i in range(len(pieces))]
    metadata = {"model": "llama", "tokens": [*tokens, *pieces], "scores": scores, "token_type": kinds}
    metadata |= {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "add_space_prefix": False}
    ours = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    for text in [*varied_texts(), "a     b\n\n\nc<table>", "<table>  def"]:
        expected = pieces_of(text, metadata["tokens"], scores, atoms)
        assert ours.encode(text) == [2, *expected], text
        assert ours.decode(expected) == text
    assert ours.to_str_tokens("def  test", prepend_bos=False)[-1].endswith("test")


def test_merges_of_gemma_4() -> None:
    """The model ``gemma4``: Gemma's pieces with merges in the place of scores, as in its tokenizer.json."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|turn>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=marks, show_progress=False)
    backend.train_from_iterator([*CORPUS, *varied_texts()[::2]], trainer)
    model = json.loads(backend.to_str())["model"]
    assert len(model["merges"]) > 100
    kinds = [3, 3, 3, 2] + [6] * 256 + [3] + [1] * (len(model["vocab"]) - len(marks))
    metadata = {"model": "gemma4", "tokens": [*model["vocab"]], "token_type": kinds, "add_space_prefix": False}
    metadata |= {"merges": [" ".join(merge) for merge in model["merges"]], "unknown_token_id": 3, "bos_token_id": 2}
    ours = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    for text in [*varied_texts(), " two  spaces", "<|turn>user", "\n\n 日本 "]:
        expected = backend.encode(text).ids
        assert ours.encode(text) == [2, *expected], text
        assert ours.decode(expected, skip_special_tokens=False) == text


def test_sentencepiece_without_bytes() -> None:
    """What is not in the vocabulary is the unknown token, not nothing."""
    metadata = {"model": "llama", "tokens": ["<unk>", "a", "\u2581"], "scores": [0.0, -1.0, -2.0]}
    tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert tokenizer.encode("aé") == [2, 1, 0]


@pytest.mark.parametrize(
    ("pre", "add_bos_token", "expected"),
    [("llama-bpe", None, True), ("tekken", None, True), ("llama-bpe", False, False), ("gpt-2", None, False)],
)
def test_bos_of_files_that_do_not_say(pre: str, add_bos_token: bool | None, expected: bool) -> None:
    metadata = {"model": "gpt2", "pre": pre, "tokens": ["<s>", "a"], "merges": [], "bos_token_id": 0}
    if add_bos_token is not None:
        metadata["add_bos_token"] = add_bos_token
    tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert tokenizer.encode("a") == ([0, 1] if expected else [1])
    assert tokenizer.encode("") == ([0] if expected else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ["a", "a"]}, "'a' twice"),
        ({"model": "llama", "scores": [0.0]}, "2 scores"),
        ({"model": "llama", "scores": ["a", "b"]}, "scores: expected numbers"),
        ({"tokens": ["a", 1]}, "tokens: expected strings"),
        ({"merges": [1]}, "merges of two tokens"),
        ({"token_type": "normal"}, "2 token types; found 'normal'"),
        ({"add_bos_token": "no"}, "add_bos_token: expected true or false; found 'no'"),
        (
            {"model": "llama", "tokens": ["a" * n for n in range(1, 1001)], "scores": [0.0] * 1000},
            "expected tokens whose squared lengths add up to at most .* found 333833500",
        ),
    ],
)
def test_gguf_lists_that_do_not_fit(change: dict, message: str) -> None:
    metadata = {"model": "gpt2", "tokens": ["a", "b"], "merges": []} | change
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


def test_a_tokenizer_without_a_token_for_a_text(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="none"))
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_files(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="expected tokens for each part of 'b'"):
        tokenizer.encode("b")


@pytest.mark.parametrize("config", ["[]", "{", '{"bos_token": 3}', "\x00"])
def test_a_damaged_tokenizer_config(config: str, tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json(: expected a JSON object|, bos_token: expected)"):
        Tokenizer.from_files(tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json")


@pytest.mark.parametrize(
    ("said", "stop"),
    [("{}", (2,)), ('{"eos_token_id": null}', (2,)), ('{"eos_token_id": 5}', (5,))]
    + [('{"eos_token_id": [2, 7]}', (2, 7))],
)
def test_what_ends_a_text(said: str, stop: tuple[int, ...], tmp_path: Path) -> None:
    """A chat model ends its turns with another token than EOS, which its generation_config.json names."""
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(said)
    files = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    assert Tokenizer.from_files(*(tmp_path / name for name in files)).stop_ids == stop


@pytest.mark.parametrize("said", ["[2]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [2, -1]}'])
def test_a_damaged_generation_config(said: str, tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(said)
    with pytest.raises(TokenizerError, match=r"generation_config.json(: expected a JSON object|, eos_token_id: exp)"):
        Tokenizer.from_files(tmp_path / "tokenizer.json", None, tmp_path / "generation_config.json")
