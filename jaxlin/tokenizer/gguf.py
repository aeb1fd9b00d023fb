"""The tokenizer in the metadata of a GGUF file: byte-level BPE, or SentencePiece's BPE, with scores or with merges.

The names and defaults are those of ``src/llama-vocab.cpp`` of https://github.com/ggml-org/llama.cpp.
"""

import re
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.backend import LocalBackend, TokenizerParts, call_library
from jaxlin.tokenizer.pre_tokenizers import GGUF_PRE_TOKENIZERS, GGUFPreTokenizer
from jaxlin.tokenizer.sentencepiece import merges_by_score
from jaxlin.tokenizer.worker import Tokens

_BYTE_LEVEL, _SCORED, _MERGED = MODELS = ("gpt2", "llama", "gemma4")
"""The values of ``tokenizer.ggml.model``: byte-level BPE, and SentencePiece's with scores, or with merges."""

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_MARKUP = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
"""The form of the tokens that mark turns in a chat template."""


def read_gguf(metadata: Mapping[str, Any], source: str) -> TokenizerParts:
    """The tokenizer of a GGUF file, its BOS and EOS tokens, and the ids that end a text, a turn or a message.

    Raises:
        TokenizerError: the tokenizer is of another kind, or its lists do not fit together.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in MODELS:
        expected = ", ".join(MODELS[:-1])
        raise TokenizerError(
            f"{source}: expected tokenizer.ggml.model {expected} or {MODELS[-1]}; found {quoted(model)}."
        )
    row = _pre_tokenizer(metadata, source) if model == _BYTE_LEVEL else None
    merges_key = "scores" if model == _SCORED else "merges"
    tokens, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", merges_key))
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise TokenizerError(f"{source}, model {model!r}: expected lists of tokens and {merges_key}; found none.")
    kinds = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        shown = f"{len(kinds)}" if isinstance(kinds, list) else quoted(kinds, 100)
        raise TokenizerError(f"{source}: expected {len(tokens)} token types; found {shown}.")
    if not all(isinstance(token, str) for token in tokens):
        raise TokenizerError(f"{source}, tokenizer.ggml.tokens: expected strings; found other values.")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        duplicate = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise TokenizerError(f"{source}: expected tokens that differ; found {quoted(duplicate)} twice.")
    if row:
        pairs = _pairs(merges, source)
        backend = _byte_level(vocabulary, pairs, row, source)
    else:
        defaults = {"tokenizer.ggml.unknown_token_id": 0}
        unknown = _token_at({**defaults, **metadata}, "tokenizer.ggml.unknown_token_id", tokens, source)
        if model == _SCORED:
            pairs = merges_by_score(vocabulary, _scores(merges, len(vocabulary), source), source)
        else:
            pairs = _pairs(merges, source)
        space_before = _flag(metadata, "add_space_prefix", model == _SCORED, source)
        backend = _sentencepiece(vocabulary, pairs, unknown, space_before, source)
    bos, eos, turn, message = (
        _token_at(metadata, f"tokenizer.ggml.{key}_token_id", tokens, source) for key in ("bos", "eos", "eot", "eom")
    )
    ends = [end for end in (eos, turn, message) if end is not None]
    merged = None if row and row.ignore_merges else {left + right for left, right in pairs}
    kinds = _corrected_types(tokens, kinds, merged, {bos, *ends})
    call_library(f"{source}: expected special tokens", _add_special, backend, tokens, kinds)
    if _flag(metadata, "add_bos_token", row is None or row.add_bos, source) and bos is not None:
        # The template has words of its own, and the token may be spelled like one: so it has another name there.
        before = {"id": "BOS", "ids": [vocabulary[bos]], "tokens": [bos]}
        backend.post_processor = processors.TemplateProcessing(single="BOS $A", special_tokens=[before])
    # Only chat templates use these two. A file without them may give an id beyond all tokens.
    others = {
        name: tokens[i]
        for name, key in (("unk_token", "unknown"), ("pad_token", "padding"))
        if type(i := metadata.get(f"tokenizer.ggml.{key}_token_id")) is int and 0 <= i < len(tokens)
    }
    named = {key: token for key, token in {"bos_token": bos, "eos_token": eos, **others}.items() if token is not None}
    stop = tuple(vocabulary[end] for end in ends)
    return TokenizerParts(LocalBackend(Tokens(backend), source), source, named, stop, _chat_templates(metadata))


def _chat_templates(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    prefix = "tokenizer.chat_template"
    named = {key[len(prefix) + 1 :]: value for key, value in metadata.items() if key.startswith(f"{prefix}.")}
    named |= {"default": metadata[prefix]} if prefix in metadata else {}
    return [{"name": name, "template": template} for name, template in named.items()]


def _pre_tokenizer(metadata: Mapping[str, Any], source: str) -> GGUFPreTokenizer:
    """The pre-tokenizer that a file names, or that of its architecture if it names none."""
    architecture = metadata.get("general.architecture")
    rows = {name: row for row in GGUF_PRE_TOKENIZERS for name in row.names}
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        usual = (row for row in GGUF_PRE_TOKENIZERS if architecture in row.architectures)
        return next(usual, rows["default"])
    if not isinstance(name, str) or name not in rows:
        raise TokenizerError(f"{source}, tokenizer.ggml.pre: expected one of {', '.join(rows)}; found {quoted(name)}.")
    return rows[name]


def _corrected_types(
    tokens: list[str], kinds: list[Any], merged: set[str] | None, special: set[str | None]
) -> list[Any]:
    """The token types, corrected where a special token is typed as a normal one, which is a fault of many files.

    Such a token is longer than a character, and no merge makes it, so that as a normal token it could never occur.

    Args:
        tokens: the vocabulary.
        kinds: their types.
        merged: the tokens that merges make; None if words that are tokens are taken without merging, so that every
            token can occur.
        special: tokens that are known to be special.
    """

    def kind_of(token: str, kind: Any) -> Any:
        if kind != _NORMAL or len(token) < 2 or merged is None or token in merged:
            return _CONTROL if kind == _NORMAL and (token in special or (merged is None and _has_bars(token))) else kind
        return _CONTROL if token in special or _MARKUP.fullmatch(token) else _USER_DEFINED

    return [kind_of(token, kind) for token, kind in zip(tokens, kinds, strict=True)]


def _has_bars(token: str) -> bool:
    return token.startswith("<|") and token.endswith("|>")


def _add_special(backend: tokenizers.Tokenizer, tokens: list[str], kinds: list[Any]) -> None:
    """Let the backend recognise control tokens and user-defined ones in a text."""
    add_functions = {_CONTROL: backend.add_special_tokens, _USER_DEFINED: backend.add_tokens}
    for kind, add in add_functions.items():
        special = kind == _CONTROL
        add([AddedToken(t, special=special, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == kind])


def _pairs(merges: list[Any], source: str) -> list[tuple[str, str]]:
    if not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):
        raise TokenizerError(f"{source}: expected merges of two tokens; found others.")
    return [(left, right) for left, right in (merge.split(" ") for merge in merges)]


def _byte_level(
    vocabulary: dict[str, int], pairs: list[tuple[str, str]], row: GGUFPreTokenizer, source: str
) -> tokenizers.Tokenizer:
    bpe = call_library(
        f"{source}: expected merges of known tokens",
        lambda: models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=row.ignore_merges),
    )
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = row.build()
    backend.decoder = decoders.ByteLevel()
    if row.nfc:
        backend.normalizer = normalizers.NFC()
    return backend


def _scores(scores: list[Any], count: int, source: str) -> list[float]:
    if len(scores) != count:
        raise TokenizerError(f"{source}: expected {count} scores; found {len(scores)}.")
    if not all(isinstance(score, float) and score == score for score in scores):
        raise TokenizerError(f"{source}, tokenizer.ggml.scores: expected numbers; found other values.")
    return scores


def _sentencepiece(
    vocabulary: dict[str, int], pairs: list[tuple[str, str]], unknown: str | None, space_before: bool, source: str
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE. No space is put before a text that begins with one, unlike in llama.cpp."""
    bpe = call_library(
        f"{source}: expected pieces",
        lambda: models.BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    )
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if space_before else "never", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_before else steps)
    return backend


def _flag(metadata: Mapping[str, Any], key: str, default: bool, source: str) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise TokenizerError(f"{source}, tokenizer.ggml.{key}: expected true or false; found {quoted(value)}.")
    return value


def _token_at(metadata: Mapping[str, Any], key: str, tokens: list[str], source: str) -> str | None:
    """The token whose id is the value of a key; None if the key is absent."""
    index = metadata.get(key)
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise TokenizerError(f"{source}, {key}: expected an id in 0..{len(tokens) - 1}; found {quoted(index)}.")
    return tokens[index]
