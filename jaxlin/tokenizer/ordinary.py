"""Which tokenizers are ordinary: made of the parts that real models use, which take little time and memory.

Any other tokenizer runs in a process of its own: a chain of replacements can turn a letter into a billion, a pattern
can take years, and some parts abort the process that runs them.
"""

from collections.abc import Callable
from typing import Any

from jaxlin.tokenizer.pre_tokenizers import PATTERNS

_MAX_IDS = 2**24
_MAX_TOKEN_LENGTH = 1000
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SPACE, _UNDERSCORE = {"String": " "}, "\u2581"


def is_ordinary(spec: dict[str, Any], added: list[dict[str, Any]]) -> bool:
    """Whether a tokenizer.json, with the `added` tokens of the files beside it, has ordinary parts alone.

    These are listed in `_PARTS`; padding and truncation are not used, so they may say anything.
    """
    keys = {"version", "truncation", "padding", "added_tokens", "model", *_PARTS}
    try:
        return (
            spec.keys() <= keys
            and all(_is_token(each) for each in [*(spec.get("added_tokens") or []), *added])
            and all(_is_part(spec.get(part), part) for part in _PARTS)
            and _is_model(spec["model"])
        )
    except (TypeError, KeyError, AttributeError):  # a value whose type does not fit its key
        return False


def _is_token(token: dict[str, Any]) -> bool:
    index, text = token.get("id", 0), token["content"]
    flags = all(isinstance(token.get(flag, False), bool) for flag in _FLAGS)
    return flags and type(index) is int and 0 <= index < _MAX_IDS and 0 < len(text) <= _MAX_TOKEN_LENGTH


def _is_model(model: dict[str, Any]) -> bool:
    has_no_affixes = all(model.get(key) in (None, "") for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    ids, kind = model["vocab"].values(), model.get("type", "BPE")
    return has_no_affixes and kind == "BPE" and model.get("dropout") is None and max(ids, default=0) < _MAX_IDS


def _is_part(part: dict[str, Any] | None, place: str) -> bool:
    kinds, many = _PARTS[place]
    if part is None:
        return True
    if part["type"] == "Sequence":
        return len(part[many]) <= 8 and all(each["type"] != "Sequence" and _is_part(each, place) for each in part[many])
    return part["type"] in kinds and kinds[part["type"]](part)


def _always(_: dict[str, Any]) -> bool:
    return True


def _is_metaspace(part: dict[str, Any]) -> bool:
    return part["replacement"] == _UNDERSCORE


def _is_split(part: dict[str, Any]) -> bool:
    pattern = part["pattern"]
    return not part.get("invert") and (pattern == _SPACE or pattern.get("Regex") in PATTERNS)


def _is_template(part: dict[str, Any]) -> bool:
    return len(part["single"]) <= 8 and sum("Sequence" in piece for piece in part["single"]) == 1


_PARTS: dict[str, tuple[dict[str, Callable[[dict[str, Any]], bool]], str]] = {
    "normalizer": (
        {
            "NFC": _always,
            "NFKC": _always,
            "Prepend": lambda part: part["prepend"] == _UNDERSCORE,
            "Replace": lambda part: part["pattern"] == _SPACE and part["content"] == _UNDERSCORE,
        },
        "normalizers",
    ),
    "pre_tokenizer": (
        {"ByteLevel": _always, "Digits": _always, "Metaspace": _is_metaspace, "Split": _is_split},
        "pretokenizers",
    ),
    "post_processor": ({"ByteLevel": _always, "TemplateProcessing": _is_template}, "processors"),
    "decoder": (
        {
            "ByteLevel": _always,
            "ByteFallback": _always,
            "Fuse": _always,
            "Metaspace": _is_metaspace,
            "Replace": lambda part: part["pattern"] == {"String": _UNDERSCORE} and part["content"] == " ",
            "Strip": lambda part: (part["content"], part["start"], part["stop"]) == (" ", 1, 0),
        },
        "decoders",
    ),
}
"""For each place of a tokenizer.json, the parts that are ordinary there, and the key of a sequence's list of parts."""
