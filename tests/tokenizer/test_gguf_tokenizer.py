"""Tokenizers of GGUF files as people made them: tokens typed wrongly, no name of a pre-tokenizer, odd spellings."""

import time
from typing import Any

import pytest
from tokenizer_files import BYTES, CORPUS, learned
from tokenizers import Regex, pre_tokenizers

from jaxlin.loading.registry import families
from jaxlin.tokenizer import Tokenizer
from jaxlin.tokenizer.pre_tokenizers import GGUF_PRE_TOKENIZERS, PATTERNS

_, NORMAL, UNKNOWN, CONTROL, _, _, BYTE = range(7)


def read(architecture: str | None = None, **metadata: Any) -> Tokenizer:
    given = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return Tokenizer.from_gguf(given | ({} if architecture is None else {"general.architecture": architecture}))


def test_special_tokens_that_are_typed_normal() -> None:
    """Gemma's marks of turns, and a token that a fine-tune added, are met as a whole; learned pieces stay pieces."""
    marks = ["<start_of_turn>", "<end_of_turn>", "note to self"]
    pieces = [*"<>_abcdefghijklmnopqrstuvwxyz\u2581", "st", "sta", "of", "tu"]
    tokens = ["<unk>", "<bos>", *marks, *pieces]
    kinds = [UNKNOWN, CONTROL, *[NORMAL] * (len(tokens) - 2)]
    scores = [-float(i) for i in range(len(tokens))]
    tokenizer = read(
        model="llama", tokens=tokens, scores=scores, token_type=kinds, bos_token_id=1, add_space_prefix=False
    )
    assert tokenizer.encode("<start_of_turn>sta") == [1, 2, tokens.index("sta")]
    assert tokenizer.encode("a note to self<end_of_turn>", prepend_bos=False) == [
        tokens.index("a"),
        tokens.index("\u2581"),
        4,
        3,
    ]
    assert tokenizer.decode([2, tokens.index("a"), 4], skip_special_tokens=True) == "anote to self"


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_the_end_of_turns_that_is_typed_normal(pre: str) -> None:
    tokens = [*sorted(BYTES.alphabet()), "<|eot_id|>", "<|im_end|>"]
    none = 2**32 - 1
    tokenizer = read(model="gpt2", pre=pre, tokens=tokens, merges=[], eot_token_id=256, padding_token_id=none)
    assert tokenizer.encode("a<|eot_id|><|im_end|>") == [tokens.index("a"), 256, 257]
    assert tokenizer.stop_ids == (256,)


def test_each_architecture_without_a_name_of_its_pre_tokenizer() -> None:
    """Every ported architecture has its usual one; where several have the same name, the name decides."""
    tokens, merges = learned(BYTES(add_prefix_space=False), BYTES.alphabet())
    text = CORPUS[0] + " 123456 don't camelCase HTTPServer"
    usual = {name: row for row in GGUF_PRE_TOKENIZERS for name in row.architectures}
    for name, row in usual.items():
        plain, named = (
            read(name, model="gpt2", tokens=tokens, merges=merges, **given) for given in ({}, {"pre": row.names[0]})
        )
        assert plain.encode(text) == named.encode(text), name
    ported = {name for family in families() for name in family.gguf}
    # Gemma's files are of SentencePiece, which has no such name.
    assert ported - usual.keys() <= {name for name in ported if name.startswith("gemma")}, ported


@pytest.mark.parametrize("bos", ["$A", "x:1", " ", "$B:1", ":", "$0", "BOS", "a b"])
def test_a_bos_that_is_spelled_like_a_template(bos: str) -> None:
    """It is a token before the text, and nothing else."""
    tokens = [*sorted(BYTES.alphabet()), *([] if bos in (":",) else [bos])]
    index = tokens.index(bos)
    tokenizer = read(model="gpt2", tokens=tokens, merges=[], bos_token_id=index, add_bos_token=True)
    assert tokenizer.encode("ab") == [index, tokens.index("a"), tokens.index("b")]
    assert tokenizer.bos_id == index


def test_each_name_of_a_pre_tokenizer_has_one_row() -> None:
    names = [name for row in GGUF_PRE_TOKENIZERS for name in row.names]
    architectures = [name for row in GGUF_PRE_TOKENIZERS for name in row.architectures]
    assert len(set(names)) == len(names)
    assert len(set(architectures)) == len(architectures)
    assert all(isinstance(row.build(), pre_tokenizers.PreTokenizer) for row in GGUF_PRE_TOKENIZERS)


def test_the_three_patterns_of_deepseek() -> None:
    """Each splits what the one before it gives: numbers, Chinese, words and what is left."""
    (row,) = (row for row in GGUF_PRE_TOKENIZERS if "deepseek-v3" in row.names)
    text = "don't 12345\u4e2d\u6587ab!foo"
    words = [text[start:stop] for _, (start, stop) in row.build().pre_tokenize_str(text)]
    assert words == ["don", "'t", " ", "123", "45", "\u4e2d\u6587", "ab", "!foo"]


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_patterns_take_time_in_proportion_to_the_text(pattern: str) -> None:
    """Twice the text takes about twice the time; a pattern that backtracks takes four times as long, or for ever."""
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")

    def seconds(text: str) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            splitter.pre_tokenize_str(text)
            best = min(best, time.process_time() - start)
        return best

    for unit in ("a", "A", " ", "\n", "1", "!", "aA", " a", "' ", "\u4e2d", "\u0301"):
        short, long = (seconds(f"{unit * count}\0") for count in (2_000, 16_000))
        assert long < 0.02 + 24 * short, unit
