"""Texts, vocabularies and files of the tests of tokenizers."""

import json
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers

from jaxlin.checkpoint.folder import TOKENIZER_FILES
from jaxlin.tokenizer import Tokenizer, read_tokenizer

BYTES = tokenizers.pre_tokenizers.ByteLevel
CORPUS = [(Path(__file__).parent / "tokenizer" / "test_tokenizer.py").read_text(encoding="utf-8")]
"""What small vocabularies are learned from."""

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


def varied_texts() -> list[str]:
    """Three hundred texts of digits, code, emoji, scripts and runs of white space."""
    pieces = [*TEXTS, " ", "  ", "\n", "\n\n", "\t", "\r\n", "7", "42", "٣", "½", "don't", "'LL", "_x", "=>", "//", "…"]
    pieces += ["Ω", "ñ", "ｆ", "\u00a0", "\u3000", "e\u0301", "🙂", "🇫🇷", "一", "ไทย", "א"]
    pieces += ["word", " Word", "CamelCase", "a.b"]
    draw = random.Random(0)
    return ["".join(draw.choices(pieces, k=draw.randint(1, 6))) for _ in range(300)]


def write_vocabulary(path: Path, model: str, **metadata: Any) -> None:
    """Write a GGUF file of the architecture llama that holds a tokenizer and one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_tokenizer_model(model)
    for key, value in metadata.items():
        adders = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        adders[type(value)](f"tokenizer.ggml.{key}", value)
    writer.add_tensor("token_embd.weight", np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def learned(pre: tokenizers.pre_tokenizers.PreTokenizer, alphabet: list[str]) -> tuple[list[str], list[str]]:
    """The tokens and merges of a small BPE that is trained on `CORPUS`."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS * 2, trainer)
    model = json.loads(backend.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(pair) for pair in model["merges"]]


def read(folder: Path) -> Tokenizer:
    """The tokenizer of a folder."""
    tokenizer = read_tokenizer(
        {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}, str(folder)
    )
    assert tokenizer is not None
    return tokenizer


def template(token: str, index: int) -> dict[str, Any]:
    """The post-processor of a tokenizer.json that puts `token`, whose id is `index`, before every text."""
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, text]
    named = {token: {"id": token, "ids": [index], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": [text, text], "special_tokens": named}
