"""Text to ids and back, against transformers where there is a reference."""

from pathlib import Path

import pytest
import tiny
import transformers

from jaxlin.checkpoint import open_checkpoint
from jaxlin.errors import TokenizerError
from jaxlin.tokenizer import Tokenizer

TEXTS = [
    "The bridge out of Marin is the",
    "  two spaces,\ttabs\nand lines\n\n\nthree ",
    "1234567 8.90 0x1F 2026-11-23",
    "don't we'll I'M they're o'clock",
    "def f(x):\n    return {x: [1, 2]}  # comment",
    "naïve café Ünïcödé ß ﬁ",
    "日本語のテキスト 中文 한국어 العربية",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 end",
    "<|im_start|>user\nhello<|im_end|>\n",
    "",
    "a" * 300,
    "\x00\x01 control \u200b zero width",
]


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    """SmolLM2's tokenizer from its GGUF file."""
    return Tokenizer.from_gguf(open_checkpoint(smollm2_gguf).config)


@pytest.fixture
def characters(tmp_path: Path) -> Tokenizer:
    """A tokenizer of single characters with BOS and EOS."""
    tiny.write_tokenizer(tmp_path)
    return Tokenizer.from_files(tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json")


def test_the_ids_are_those_of_transformers(smollm2: Tokenizer, smollm2_gguf: Path) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    for text in TEXTS:
        assert smollm2.encode(text) == reference(text).input_ids, text
        assert smollm2.decode(smollm2.encode(text)) == text
    assert smollm2.encode(TEXTS[0]) == [504, 7395, 578, 282, 43749, 314, 260]
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.vocab_size) == (1, 2, 49152)


def test_str_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.to_str_tokens("The bridge") == ["The", " bridge"]
    assert smollm2.to_str_tokens([504, 7395]) == ["The", " bridge"]
    assert "".join(smollm2.to_str_tokens("plain words, and more")) == "plain words, and more"
    assert "\N{REPLACEMENT CHARACTER}" in smollm2.to_str_tokens("👩‍👩‍👧")[0]


def test_single_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.to_single_token(" bridge") == 7395
    for text in ("Golden Gate", ""):
        with pytest.raises(TokenizerError, match="expected one token; found"):
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
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<begin>"}}')
    with pytest.raises(TokenizerError, match="<begin>"):
        Tokenizer.from_files(tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json")


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
