"""tokenizer.json, and the files beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz.draws import TEXTS, Draw
from benchmarks.fuzz.readers import reader
from jaxlin.common.errors import JaxlinError
from jaxlin.tokenizer import Tokenizer

PROMPTS = ["", "a", "hello there 123", "a" * 50 + "!", "é🌉 \n\t", "<s>a</s>", " " * 300]


def _special(number: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


SAMPLE: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [_special(0, "<s>"), _special(1, "</s>")],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {"<s>": 0, "</s>": 1, **{chr(97 + n): 2 + n for n in range(26)}, "Ġ": 28, "he": 29, "ll": 30},
        "merges": [["h", "e"], ["l", "l"]],
    },
}

PARTS: dict[str, list[dict[str, Any]]] = {
    "normalizer": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"},
        {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""},
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
    "pre_tokenizer": [
        {"type": "Split", "pattern": {"Regex": r"(\w+\s?)*$"}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "FixedLength", "length": 0},
        {"type": "Digits", "individual_digits": True},
    ],
    "decoder": [
        {"type": "Strip", "content": "a", "start": 2**62, "stop": 2**62},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"},
        {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True},
        {"type": "ByteFallback"},
    ],
    "post_processor": [
        {"type": "BertProcessing", "sep": ["</s>", 2**31], "cls": ["<s>", 0]},
        {**SAMPLE["post_processor"], "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 5},
    ],
}
LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def use(tokenizer: Tokenizer) -> None:
    """Use a tokenizer as a person does: texts to ids and back."""
    repr(tokenizer)
    for text in PROMPTS:
        try:
            ids = tokenizer.encode(text)
            tokenizer.decode(ids[:20])
            tokenizer.to_str_tokens(ids[:5])
        except JaxlinError as error:
            str(error)


@reader(3)
def tokenizer(draw: Draw, folder: Path) -> Callable[[], Any]:
    """tokenizer.json with other parts or values, or with wrong settings in the files beside it."""
    value = dict(SAMPLE)
    if draw.rarely(0.6):
        place = draw.choice(list(PARTS))
        part = draw.choice(PARTS[place])
        if place in LISTS and draw.rarely(0.3):
            part = {"type": "Sequence", LISTS[place]: [part] * draw.choice([1, 3, 20])}
        value[place] = part
    if draw.rarely(0.6):
        value = draw.json_like(value, ["type", "vocab", "merges", "content", "pattern", "id"])
    (folder / "tokenizer.json").write_bytes(draw.text_of(value))
    beside: Any = {"bos_token": draw.choice(["<s>", *TEXTS]), "eos_token": {"content": "</s>"}}
    beside = draw.json_like(beside, ["bos_token", "added_tokens_decoder"]) if draw.rarely(0.3) else beside
    (folder / "tokenizer_config.json").write_bytes(draw.text_of(beside))
    ends: Any = {"eos_token_id": draw.choice([1, [0, 1], draw.value()])}
    (folder / "generation_config.json").write_bytes(draw.text_of(ends))
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    return lambda: use(Tokenizer.from_files(*(folder / name for name in names)))
