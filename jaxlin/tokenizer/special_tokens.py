"""Special tokens in the files beside tokenizer.json: tokens that are added or changed, and those that have a name.

The files are read as by transformers 5 (`PreTrainedTokenizerBase.from_pretrained`): if tokenizer_config.json has an
``added_tokens_decoder``, the older special_tokens_map.json and added_tokens.json are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names of special tokens that any tokenizer may have."""

_FLAGS = ("single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens in the files beside a tokenizer.json.

    Attributes:
        added: tokens that are added to the tokenizer or replace its own, as the arguments of `tokenizers.AddedToken`.
        named: the text of the tokens that have a name, such as ``bos_token``.
    """

    added: list[dict[str, Any]] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)


def read_special_tokens(
    config: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added_tokens: Mapping[str, Any],
    stored: list[Any],
    source: str,
) -> SpecialTokens:
    """The tokens in the files beside a tokenizer.json.

    Args:
        config: tokenizer_config.json.
        special_map: special_tokens_map.json.
        added_tokens: added_tokens.json.
        stored: ``added_tokens`` of tokenizer.json.
        source: the name of the tokenizer, for messages.

    Raises:
        TokenizerError: a value is not a token or an id.
    """
    # transformers takes no object without ``"__type": "AddedToken"`` for a token; of those in `NAMED` it refuses it.
    entries = {key: each for key, each in config.items() if key in NAMED or not _is_unmarked(key, each)}
    keys = [key for key in ("extra_special_tokens", "additional_special_tokens") if key in entries]
    extra = _list(next((entries[key] for key in keys if entries[key]), None), source)
    own = [_token(each, source, special=False) for each in stored]
    numbered: dict[int, dict[str, Any]] = {}
    if "added_tokens_decoder" in entries:
        decoder = entries["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise TokenizerError(f"{source}, added_tokens_decoder: expected an object; found {quoted(decoder)}.")
        numbered = {_id(i, source): _token(each, source, special=False) for i, each in decoder.items()}
    else:
        if not keys:
            older = special_map.get("extra_special_tokens") or special_map.get("additional_special_tokens")
            extra = _list(older, source)
        for key, each in special_map.items():
            entries[key] = {**each, "special": True} if isinstance(each, dict) else each
        named = [entries.get(key) for key in NAMED] + list(extra.values() if isinstance(extra, dict) else extra)
        special = {text for text in map(_text, named) if isinstance(text, str)}
        for text, i in added_tokens.items():
            flags = {"normalized": text not in special, "special": text in special}
            numbered[_id(i, source)] = _token({"content": text, **flags}, source, special=False)
        ids = [_id(each.get("id") if isinstance(each, dict) else None, source) for each in stored]
        numbered |= dict(zip(ids, own, strict=True))
    by_text = {token["content"]: token for token in numbered.values()}
    values = {key: entries[key] for key in NAMED if entries.get(key) is not None}
    others = {key: each for key, each in entries.items() if key.endswith("_token") and key not in NAMED}
    values |= {key: each for key, each in others.items() if isinstance(each, str | dict)}
    values |= extra if isinstance(extra, dict) else {}
    tokens = {
        key: by_text.get(str(_text(each))) or _token(each, f"{source}, {key}", special=True)
        for key, each in values.items()
    }
    unnamed = [] if isinstance(extra, dict) else [_token(each, source, special=True) for each in extra]
    stored_tokens = {_key(token) for token in own}
    added = [token for _, token in sorted(numbered.items()) if _key(token) not in stored_tokens]
    texts = {token["content"] for token in [*own, *added]}
    # Of two entries for one token, the backend lets the last one overrule the first.
    for token in [*tokens.values(), *unnamed]:
        if token["content"] not in texts and token not in added:
            added.append(token)
    special = {token["content"] for token in tokens.values()}
    added = [_resolved({**token, "special": token["special"] or token["content"] in special}) for token in added]
    return SpecialTokens(added, {key: token["content"] for key, token in tokens.items()})


def _is_unmarked(key: str, value: Any) -> bool:
    return key.endswith("_token") and isinstance(value, dict) and value.get("__type") != "AddedToken"


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _token(token: Any, source: str, *, special: bool) -> dict[str, Any]:
    """The arguments of `tokenizers.AddedToken` with their defaults, except `normalized`, which `_resolved` adds."""
    entry = token if isinstance(token, dict) else {"content": token}
    text, is_special = entry.get("content"), entry.get("special", special)
    arguments = {"content": text, **{flag: entry.get(flag, False) for flag in _FLAGS}, "special": is_special}
    arguments |= {"normalized": entry["normalized"]} if entry.get("normalized") is not None else {}
    flags = [value for key, value in arguments.items() if key != "content"]
    if not isinstance(text, str) or not text or not all(isinstance(flag, bool) for flag in flags):
        raise TokenizerError(f"{source}: expected a token, as a text or an object with it; found {quoted(token)}.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TokenizerError(f"{source}: expected a token of characters; found half of one in {quoted(text)}.")
    return arguments


def _key(token: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(_resolved(token).items()))


def _resolved(token: dict[str, Any]) -> dict[str, Any]:
    """A token with its `normalized`: by default a token is looked for in normalised text unless it is special."""
    return {"normalized": not token["special"], **token}


def _list(value: Any, source: str) -> Any:
    if value is None:
        return []
    if not isinstance(value, list | dict):
        raise TokenizerError(f"{source}, extra_special_tokens: expected a list of tokens; found {quoted(value)}.")
    return value


def _id(value: Any, source: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):  # int(inf) raises the last
        raise TokenizerError(f"{source}: expected the id of a token; found {quoted(value)}.") from None
