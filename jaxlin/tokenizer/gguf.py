"""The tokenizer in the metadata of a GGUF file: byte-level BPE, or SentencePiece's with scores, for `tokenizers`.

The names and defaults are those of ``src/llama-vocab.cpp`` of https://github.com/ggml-org/llama.cpp.
"""

import re
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.backend import Local, tried
from jaxlin.tokenizer.merges import pairs_by_score
from jaxlin.tokenizer.parts import Parts
from jaxlin.tokenizer.splits import SPLITS, Split
from jaxlin.tokenizer.worker import Tokens

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_MARKUP = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
"""What tokens of a chat template look like."""


def gguf_parts(metadata: Mapping[str, Any], source: str) -> Parts:
    """The tokenizer of a GGUF file, its BOS and EOS tokens, and the ids that end a text, a turn or a message.

    Raises:
        TokenizerError: another kind of tokenizer, or lists that do not fit together.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(f"{source}: expected tokenizer.ggml.model gpt2 or llama; found {quoted(model)}.")
    split = _split(metadata, source) if model == "gpt2" else None
    merges_key = "merges" if split else "scores"
    tokens, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", merges_key))
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise TokenizerError(f"{source}, model {model!r}: expected lists of tokens and {merges_key}; found none.")
    kinds = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        found = f"{len(kinds)}" if isinstance(kinds, list) else quoted(kinds, 100)
        raise TokenizerError(f"{source}: expected {len(tokens)} token types; found {found}.")
    if not all(isinstance(token, str) for token in tokens):
        raise TokenizerError(f"{source}, tokenizer.ggml.tokens: expected strings; found other values.")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise TokenizerError(f"{source}: expected tokens that differ; found {quoted(twice)} twice.")
    if split:
        pairs = _pairs(merges, source)
        backend = _byte_level(vocabulary, pairs, split, source)
    else:
        defaults = {"tokenizer.ggml.unknown_token_id": 0}
        unknown = _named({**defaults, **metadata}, "tokenizer.ggml.unknown_token_id", tokens, source)
        pairs = pairs_by_score(vocabulary, _scores(merges, len(vocabulary), source), source)
        space_before = _flag(metadata, "add_space_prefix", True, source)
        backend = _sentencepiece(vocabulary, pairs, unknown, space_before, source)
    bos, eos, turn, message = (
        _named(metadata, f"tokenizer.ggml.{key}_token_id", tokens, source) for key in ("bos", "eos", "eot", "eom")
    )
    ends = [end for end in (eos, turn, message) if end is not None]
    made = None if split and split.whole_words else {left + right for left, right in pairs}
    kinds = _mended(tokens, kinds, made, {bos, *ends})
    tried(f"{source}: expected special tokens", _mark, backend, tokens, kinds)
    if _flag(metadata, "add_bos_token", split is None or split.bos, source) and bos is not None:
        # The token may be spelled like the template's own words, so it goes by another name there.
        before = {"id": "BOS", "ids": [vocabulary[bos]], "tokens": [bos]}
        backend.post_processor = processors.TemplateProcessing(single="BOS $A", special_tokens=[before])
    # Only templates name these two, and files that have none may say so by a number beyond all tokens.
    others = {
        name: tokens[i]
        for name, key in (("unk_token", "unknown"), ("pad_token", "padding"))
        if type(i := metadata.get(f"tokenizer.ggml.{key}_token_id")) is int and 0 <= i < len(tokens)
    }
    named = {key: t for key, t in {"bos_token": bos, "eos_token": eos, **others}.items() if t is not None}
    stop = tuple(vocabulary[end] for end in ends)
    return Parts(Local(Tokens(backend), source), source, named, stop, _chat_templates(metadata))


def _chat_templates(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    prefix = "tokenizer.chat_template"
    named = {key[len(prefix) + 1 :]: value for key, value in metadata.items() if key.startswith(f"{prefix}.")}
    named |= {"default": metadata[prefix]} if prefix in metadata else {}
    return [{"name": name, "template": template} for name, template in named.items()]


def _split(metadata: Mapping[str, Any], source: str) -> Split:
    """The row of a file: that of the name it gives; of one that gives none, that of its architecture."""
    architecture = metadata.get("general.architecture")
    rows = {name: row for row in SPLITS for name in row.names}
    usual = next((row for row in SPLITS if architecture in row.architectures), rows["default"])
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        return usual
    if not isinstance(name, str) or name not in rows:
        raise TokenizerError(f"{source}, tokenizer.ggml.pre: expected one of {', '.join(rows)}; found {quoted(name)}.")
    return rows[name]


def _mended(tokens: list[str], kinds: list[Any], made: set[str] | None, named: set[str | None]) -> list[Any]:
    """`kinds`, with those of normal tokens that no text could become: they are special ones that are typed wrongly.

    Such a token is longer than a character and no pair of tokens makes it. `made` are the tokens that pairs make; None
    where words are taken whole, so that all can be met.
    """

    def kind_of(token: str, kind: Any) -> Any:
        if kind != _NORMAL or len(token) < 2 or made is None or token in made:
            return _CONTROL if kind == _NORMAL and (token in named or (made is None and _is_bar(token))) else kind
        return _CONTROL if token in named or _MARKUP.fullmatch(token) else _USER_DEFINED

    return [kind_of(token, kind) for token, kind in zip(tokens, kinds, strict=True)]


def _is_bar(token: str) -> bool:
    return token.startswith("<|") and token.endswith("|>")


def _mark(backend: tokenizers.Tokenizer, tokens: list[str], kinds: list[Any]) -> None:
    """Have control tokens, and those of the user, recognised in a text."""
    marked = {_CONTROL: backend.add_special_tokens, _USER_DEFINED: backend.add_tokens}
    for kind, add in marked.items():
        special = kind == _CONTROL
        add([AddedToken(t, special=special, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == kind])


def _pairs(merges: list[Any], source: str) -> list[tuple[str, str]]:
    if not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):
        raise TokenizerError(f"{source}: expected merges of two tokens; found others.")
    return [(left, right) for left, right in (merge.split(" ") for merge in merges)]


def _byte_level(
    vocabulary: dict[str, int], pairs: list[tuple[str, str]], split: Split, source: str
) -> tokenizers.Tokenizer:
    bpe = tried(
        f"{source}: expected merges of known tokens",
        lambda: models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split.whole_words),
    )
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    if split.nfc:
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
    """SentencePiece's BPE.

    A text that begins with a space gets no second one before it, as in transformers (llama.cpp puts one there).
    """
    bpe = tried(
        f"{source}: expected pieces",
        lambda: models.BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    )
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if space_before else "never", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_before else steps)
    return backend


def _flag(metadata: Mapping[str, Any], key: str, default: bool, source: str) -> bool:
    found = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(found, bool):
        raise TokenizerError(f"{source}, tokenizer.ggml.{key}: expected true or false; found {quoted(found)}.")
    return found


def _named(metadata: Mapping[str, Any], key: str, tokens: list[str], source: str) -> str | None:
    index = metadata.get(key)
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise TokenizerError(f"{source}, {key}: expected an id in 0..{len(tokens) - 1}; found {quoted(index)}.")
    return tokens[index]
