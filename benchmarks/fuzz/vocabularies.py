"""tekken.json, tokenizer.model, the files beside them, and chat templates."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz.draws import TEXTS, Draw
from benchmarks.fuzz.readers import reader
from benchmarks.fuzz.tokenizers import SAMPLE, use
from jaxlin.checkpoint.folder import TOKENIZER_FILES
from jaxlin.tokenizer import read_tokenizer
from jaxlin.tokenizer.pre_tokenizers import TEKKEN

TEKKEN_FILE: dict[str, Any] = {
    "config": {"pattern": TEKKEN, "default_vocab_size": 280, "default_num_special_tokens": 20, "version": "v7"},
    "vocab": [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)],
    "special_tokens": [
        {"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(["<unk>", "<s>", "</s>", "[INST]"])
    ],
}

BESIDE: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "__type": "AddedToken", "lstrip": False},
        "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}, "5": {"content": "[X]"}},
        "additional_special_tokens": ["<y>"],
        "add_bos_token": True,
    },
    "special_tokens_map.json": {"bos_token": {"content": "<s>", "rstrip": True}, "eos_token": "</s>"},
    "added_tokens.json": {"<s>": 1, "[Z]": 600},
}

TEMPLATES = [
    "{% for message in messages %}{{ message.content }}{% endfor %}",
    "{{ bos_token }}{{ messages | tojson }}",
    "{{ messages[0].__class__.__mro__ }}",
    "{{ 'a' * 10 ** 9 }}",
    "{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
]


def _field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer; integers have at most seven bits."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def _piece(text: str, kind: int) -> bytes:
    return _field(1, _field(1, text.encode()) + b"\x15\0\0\0\0" + _field(3, kind))


PIECES = b"".join(
    [
        *(_piece(text, kind) for text, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3), ("\u2581", 1))),
        *(_piece(chr(97 + i), 1) for i in range(26)),
        *(_piece(text, 1) for text in ("he", "ll", "hell")),
        _field(2, _field(3, 2)),
        _field(3, _field(3, 1) + _field(4, 0)),
    ]
)
"""A tokenizer.model of letters."""


@reader(2)
def vocabulary(draw: Draw, folder: Path) -> Callable[[], Any]:
    """tekken.json, tokenizer.model or tokenizer.json and the files beside them, any of these changed."""
    kind = draw.choice(["tekken.json", "tokenizer.model", "tokenizer.json"])
    if kind == "tokenizer.model":
        (folder / kind).write_bytes(PIECES if draw.rarely(0.2) else draw.bytes_like(PIECES))
    else:
        sample = TEKKEN_FILE if kind == "tekken.json" else SAMPLE
        keys = ["rank", "token_str", "token_bytes", "special_tokens", "config", "pattern"]
        changed = kind == "tekken.json" and not draw.rarely(0.2)
        (folder / kind).write_bytes(draw.text_of(draw.json_like(sample, keys) if changed else sample))
    for name, value in BESIDE.items():
        if draw.rarely(0.6):
            keys = ["content", "bos_token", "extra_special_tokens", "special"]
            (folder / name).write_bytes(draw.text_of(draw.json_like(value, keys) if draw.rarely(0.7) else value))
    files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}

    def run() -> None:
        tokenizer = read_tokenizer(files, str(folder))
        assert tokenizer is not None
        use(tokenizer)

    return run


@reader(1)
def chat(draw: Draw, folder: Path) -> Callable[[], Any]:
    """A chat template with changes, or a value that is none."""
    (folder / "tokenizer.json").write_bytes(draw.text_of(SAMPLE))
    template: Any = draw.choice(TEMPLATES)
    if draw.rarely(0.5):
        template = draw.bytes_like(template.encode()).decode("utf-8", "replace")
    stored = draw.choice([template, [{"name": "default", "template": template}], draw.value()])
    (folder / "tokenizer_config.json").write_bytes(draw.text_of({"bos_token": "<s>", "chat_template": stored}))
    files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    messages = [{"role": "user", "content": draw.choice(TEXTS)}]

    def run() -> None:
        tokenizer = read_tokenizer(files, str(folder))
        assert tokenizer is not None
        tokenizer.chat(messages, add_generation_prompt=True)

    return run
