"""Special tokens beside tokenizer.json: which tokens they add to it or change, and which of them begin and end a text.

What stands where, and what overrules what, is transformers 5's reading (`PreTrainedTokenizerBase.from_pretrained`):
``added_tokens_decoder`` in tokenizer_config.json makes the older special_tokens_map.json and added_tokens.json unread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that every tokenizer may have."""

_FLAGS = ("single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class SpecialTokens:
    """What the files beside a tokenizer say of its tokens.

    Attributes:
        added: tokens to add to it, or to put in the place of its own, as the arguments of `tokenizers.AddedToken`.
        named: the text of those that have a name, such as ``bos_token``.
    """

    added: list[dict[str, Any]] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)


def special_tokens(
    config: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added_tokens: Mapping[str, Any],
    stored: list[Any],
    source: str,
) -> SpecialTokens:
    """What the files beside a tokenizer say of its tokens.

    Args:
        config: tokenizer_config.json.
        special_map: special_tokens_map.json.
        added_tokens: added_tokens.json.
        stored: ``added_tokens`` of tokenizer.json.
        source: the tokenizer, for messages.

    Raises:
        TokenizerError: what is no token, or no id.
    """
    # An object without the mark is no token to transformers, but for the named ones, which it refuses.
    given = {key: each for key, each in config.items() if key in NAMED or not _is_unmarked(key, each)}
    keys = [key for key in ("extra_special_tokens", "additional_special_tokens") if key in given]
    extra = _list(next((given[key] for key in keys if given[key]), None), source)
    own = [_token(each, source, special=False) for each in stored]
    numbered: dict[int, dict[str, Any]] = {}
    if "added_tokens_decoder" in given:
        decoder = given["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise TokenizerError(f"{source}, added_tokens_decoder: expected an object; found {quoted(decoder)}.")
        numbered = {_id(i, source): _token(each, source, special=False) for i, each in decoder.items()}
    else:
        if not keys:
            older = special_map.get("extra_special_tokens") or special_map.get("additional_special_tokens")
            extra = _list(older, source)
        for key, each in special_map.items():
            given[key] = {**each, "special": True} if isinstance(each, dict) else each
        named = [given.get(key) for key in NAMED] + list(extra.values() if isinstance(extra, dict) else extra)
        special = {text for text in map(_text, named) if isinstance(text, str)}
        for text, i in added_tokens.items():
            flags = {"normalized": text not in special, "special": text in special}
            numbered[_id(i, source)] = _token({"content": text, **flags}, source, special=False)
        ids = [_id(each.get("id") if isinstance(each, dict) else None, source) for each in stored]
        numbered |= dict(zip(ids, own, strict=True))
    known = {token["content"]: token for token in numbered.values()}
    values = {key: given[key] for key in NAMED if given.get(key) is not None}
    others = {key: each for key, each in given.items() if key.endswith("_token") and key not in NAMED}
    values |= {key: each for key, each in others.items() if isinstance(each, str | dict)}
    values |= extra if isinstance(extra, dict) else {}
    tokens = {
        key: known.get(str(_text(each))) or _token(each, f"{source}, {key}", special=True)
        for key, each in values.items()
    }
    unnamed = [] if isinstance(extra, dict) else [_token(each, source, special=True) for each in extra]
    stored_tokens = {_key(token) for token in own}
    added = [token for _, token in sorted(numbered.items()) if _key(token) not in stored_tokens]
    there = {token["content"] for token in [*own, *added]}
    # Of two that say different things of one token, the last holds.
    for token in [*tokens.values(), *unnamed]:
        if token["content"] not in there and token not in added:
            added.append(token)
    special = {token["content"] for token in tokens.values()}
    added = [_resolved({**token, "special": token["special"] or token["content"] in special}) for token in added]
    return SpecialTokens(added, {key: token["content"] for key, token in tokens.items()})


def _is_unmarked(key: str, value: Any) -> bool:
    return key.endswith("_token") and isinstance(value, dict) and value.get("__type") != "AddedToken"


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _token(token: Any, source: str, *, special: bool) -> dict[str, Any]:
    """The arguments of `tokenizers.AddedToken`, with its defaults but for `normalized`, which depends on others."""
    given = token if isinstance(token, dict) else {"content": token}
    text, is_special = given.get("content"), given.get("special", special)
    arguments = {"content": text, **{flag: given.get(flag, False) for flag in _FLAGS}, "special": is_special}
    arguments |= {"normalized": given["normalized"]} if given.get("normalized") is not None else {}
    flags = [value for key, value in arguments.items() if key != "content"]
    if not isinstance(text, str) or not text or not all(isinstance(flag, bool) for flag in flags):
        raise TokenizerError(f"{source}: expected a token, as a text or an object with it; found {quoted(token)}.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TokenizerError(f"{source}: expected a token of characters; found half of one in {quoted(text)}.")
    return arguments


def _key(token: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(_resolved(token).items()))


def _resolved(token: dict[str, Any]) -> dict[str, Any]:
    """A token whose text is normalised before it is looked for unless it is special or says otherwise."""
    return {"normalized": not token["special"], **token}


def _list(found: Any, source: str) -> Any:
    if found is None:
        return []
    if not isinstance(found, list | dict):
        raise TokenizerError(f"{source}, extra_special_tokens: expected a list of tokens; found {quoted(found)}.")
    return found


def _id(found: Any, source: str) -> int:
    try:
        return int(found)
    except (TypeError, ValueError, OverflowError):  # the last of infinity
        raise TokenizerError(f"{source}: expected the id of a token; found {quoted(found)}.") from None
