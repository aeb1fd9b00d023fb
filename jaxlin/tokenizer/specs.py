"""A tokenizer.json made of its parts, for tokenizers that are read from other files."""

from typing import Any


def tokenizer_json(model: dict[str, Any], added: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    """A tokenizer.json with a BPE model.

    Args:
        model: ``vocab``, ``merges`` and the options that differ from the defaults.
        added: its special tokens and user-defined tokens.
        parts: the normalizer, pre-tokenizer, post-processor and decoder.
    """
    defaults = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    defaults |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return {**head, **parts, "model": {**defaults, **model}}


def added_token(text: str, index: int, *, special: bool, normalized: bool = False) -> dict[str, Any]:
    """A token that is recognised in a text before the text is split into words."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": index, "content": text, **flags, "normalized": normalized, "special": special}


def prepend_token(token: str | None, vocabulary: dict[str, int]) -> dict[str, Any] | None:
    """The post-processor that puts a token before each text; None if the token is None."""
    if token is None:
        return None
    text, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    spelling = {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
    pair = [special, text, {"SpecialToken": {"id": token, "type_id": 1}}, other]
    return {"type": "TemplateProcessing", "single": [special, text], "pair": pair, "special_tokens": {token: spelling}}
