"""Parts of a tokenizer.json, for tokenizers that are read from other files."""

from typing import Any


def tokenizer_json(model: dict[str, Any], added: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    """A tokenizer.json of BPE.

    Args:
        model: ``vocab``, ``merges`` and what else is unlike the default.
        added: its special tokens and those of the user.
        parts: the normaliser, pre-tokeniser, post-processor and decoder.
    """
    plain = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    plain |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return {**head, **parts, "model": {**plain, **model}}


def added_token(text: str, index: int, *, special: bool, normalized: bool = False) -> dict[str, Any]:
    """A token that is looked for in a text before it is split."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": index, "content": text, **flags, "normalized": normalized, "special": special}


def begins_with(token: str | None, vocabulary: dict[str, int]) -> dict[str, Any] | None:
    """The post-processor that puts a token before each text; None if there is no such token."""
    if token is None:
        return None
    text, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    named = {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
    pair = [special, text, {"SpecialToken": {"id": token, "type_id": 1}}, other]
    return {"type": "TemplateProcessing", "single": [special, text], "pair": pair, "special_tokens": {token: named}}
