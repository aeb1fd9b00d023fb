"""The tokenizer in the metadata of a GGUF file: byte-level BPE, or SentencePiece's with scores, for `tokenizers`.

The names and defaults are those of ``src/llama-vocab.cpp`` of https://github.com/ggml-org/llama.cpp.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jaxlin.errors import TokenizerError

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _ENDINGS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


GGUF_PRE_TOKENIZERS = {
    "default": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo"), lambda: pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), lambda: _split(_WORDS % "{1,3}")),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), lambda: _split(_WORDS % "")),
    "tekken": lambda: _split(_CASED_WORDS % ("", "", "")),
    "gpt-4o": lambda: _split(_CASED_WORDS % (_ENDINGS + "?", _ENDINGS + "?", "{1,3}")),
}
"""How text is split before merging, by the name a GGUF file gives it (``tokenizer.ggml.pre``)."""

_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Those that take a word that is a token whole, whatever the merges, and put BOS before a text unless the file says
otherwise, which many files of Llama 3 do not (llama.cpp, `llama_vocab::impl::load`)."""

_CONTROL, _USER_DEFINED = 3, 4

_MOST_SPLIT = 2**28
"""What the squares of the lengths of a SentencePiece vocabulary's tokens may add up to: each is tried in two parts at
every character, and a file could be made to take all memory. 262,144 tokens of 16 characters, SentencePiece's longest
unless told, come to a quarter of it."""


def gguf_tokenizer(
    metadata: Mapping[str, Any], source: str
) -> tuple[tokenizers.Tokenizer, str | None, str | None, list[int]]:
    """The tokenizer of a GGUF file, its BOS and EOS tokens, and the ids that end a text, a turn or a message.

    Raises:
        TokenizerError: another kind of tokenizer, or lists that do not fit together.
    """
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(f"{source}: expected tokenizer.ggml.model gpt2 or llama; found {model!r}.")
    if model == "gpt2" and pre not in GGUF_PRE_TOKENIZERS:
        known = ", ".join(GGUF_PRE_TOKENIZERS)
        raise TokenizerError(f"{source}, tokenizer.ggml.pre: expected one of {known}; found {pre!r}.")
    merges_key = "merges" if model == "gpt2" else "scores"
    tokens, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", merges_key))
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise TokenizerError(f"{source}, model {model!r}: expected lists of tokens and {merges_key}; found none.")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        found = f"{len(kinds)}" if isinstance(kinds, list) else repr(kinds)[:100]
        raise TokenizerError(f"{source}: expected {len(tokens)} token types; found {found}.")
    if not all(isinstance(token, str) for token in tokens):
        raise TokenizerError(f"{source}, tokenizer.ggml.tokens: expected strings; found other values.")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise TokenizerError(f"{source}: expected tokens that differ; found {twice!r} twice.")
    if model == "gpt2":
        backend = _byte_level(vocabulary, merges, pre, source)
    else:
        defaults = {"tokenizer.ggml.unknown_token_id": 0}
        unknown = _named({**defaults, **metadata}, "tokenizer.ggml.unknown_token_id", tokens, source)
        space_before = _said(metadata, "add_space_prefix", True, source)
        backend = _sentencepiece(vocabulary, merges, unknown, space_before, source)
    marked = {_CONTROL: backend.add_special_tokens, _USER_DEFINED: backend.add_tokens}
    for kind, add in marked.items():
        special = kind == _CONTROL
        add([AddedToken(t, special=special, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == kind])
    bos, eos, turn, message = (
        _named(metadata, f"tokenizer.ggml.{key}_token_id", tokens, source) for key in ("bos", "eos", "eot", "eom")
    )
    if _said(metadata, "add_bos_token", model == "llama" or pre in _WHOLE_WORDS, source) and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    return backend, bos, eos, [vocabulary[end] for end in (eos, turn, message) if end is not None]


def _byte_level(vocabulary: dict[str, int], merges: list[Any], pre: str, source: str) -> tokenizers.Tokenizer:
    if not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):
        raise TokenizerError(f"{source}: expected merges of two tokens; found others.")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        bpe = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in _WHOLE_WORDS)
    except Exception as error:
        raise TokenizerError(f"{source}: expected merges of known tokens; found {error}."[:300]) from error
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = GGUF_PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    if pre in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece(
    vocabulary: dict[str, int], scores: list[Any], unknown: str | None, space_before: bool, source: str
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: of all adjacent pieces, the pair whose union has the highest score is merged first.

    A text that begins with a space gets no second one before it, as in transformers (llama.cpp puts one there).
    """
    if len(scores) != len(vocabulary):
        raise TokenizerError(f"{source}: expected {len(vocabulary)} scores; found {len(scores)}.")
    if not all(isinstance(score, float) and score == score for score in scores):
        raise TokenizerError(f"{source}, tokenizer.ggml.scores: expected numbers; found other values.")
    if (work := sum(len(token) ** 2 for token in vocabulary)) > _MOST_SPLIT:
        raise TokenizerError(
            f"{source}, tokenizer.ggml.tokens: expected squares of their lengths that add up to at most {_MOST_SPLIT}; "
            f"found {work}."
        )
    found = [
        (-score, cut, len(token) - cut, token[:cut], token[cut:])
        for token, score in zip(vocabulary, scores, strict=True)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    # Among equal scores longer left parts come first, as transformers sorts them.
    found.sort(key=lambda pair: (pair[0], -pair[1], -pair[2]))
    pairs = [(left, right) for *_, left, right in found]
    bpe = models.BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if space_before else "never", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_before else steps)
    return backend


def _said(metadata: Mapping[str, Any], key: str, default: bool, source: str) -> bool:
    found = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(found, bool):
        raise TokenizerError(f"{source}, tokenizer.ggml.{key}: expected true or false; found {found!r}.")
    return found


def _named(metadata: Mapping[str, Any], key: str, tokens: list[str], source: str) -> str | None:
    index = metadata.get(key)
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise TokenizerError(f"{source}, {key}: expected an id in 0..{len(tokens) - 1}; found {index!r}.")
    return tokens[index]
