"""Text to token ids and back: a thin class over the `tokenizers` library."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jaxlin.errors import TokenizerError

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
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
    "tekken": lambda: _split(_CASED_WORDS),
}
"""How text is split before merging, by the name a GGUF file gives it (``tokenizer.ggml.pre``)."""

_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Those that take a word that is a token whole, whatever the merges, and put BOS before a text unless the file says
otherwise, which many files of Llama 3 do not (llama.cpp, `llama_vocab::impl::load`)."""

_CONTROL, _USER_DEFINED = 3, 4


class Tokenizer:
    """A tokenizer with the method names that TransformerLens users know.

    Attributes:
        bos_id: the id of the token that begins a text; None if there is none.
        eos_id: the id of the token that ends one; None if there is none.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, bos: str | None = None, eos: str | None = None, source: str = "tokenizer"
    ) -> None:
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._before = backend.encode("a", add_special_tokens=False).ids
        for name, token in (("bos_token", bos), ("eos_token", eos)):
            if token is not None and backend.token_to_id(token) is None:
                raise TokenizerError(f"{source}: expected the {name} {token!r} in the vocabulary; found no such token.")
        self.bos_id = None if bos is None else backend.token_to_id(bos)
        self.eos_id = None if eos is None else backend.token_to_id(eos)

    @classmethod
    def from_files(cls, tokenizer_json: Path, tokenizer_config: Path | None = None) -> "Tokenizer":
        """From tokenizer.json, and tokenizer_config.json for the names of the BOS and EOS tokens.

        Raises:
            TokenizerError: a file that cannot be read.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(tokenizer_json.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises no other
            raise TokenizerError(f"{tokenizer_json}: expected a tokenizer; found {error}."[:300]) from error
        names: dict[str, str | None] = {"bos_token": None, "eos_token": None}
        if tokenizer_config is not None:
            try:
                config = json.loads(tokenizer_config.read_text(encoding="utf-8"))
                for name in names:
                    token = config.get(name)
                    names[name] = token.get("content") if isinstance(token, dict) else token
                    if not isinstance(names[name], str | None):
                        raise ValueError(f"{name} {token!r}")
            except (ValueError, AttributeError, OSError) as error:
                raise TokenizerError(f"{tokenizer_config}: expected a JSON object; found {error}."[:300]) from error
        return cls(backend, names["bos_token"], names["eos_token"], str(tokenizer_json))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], source: str = "GGUF") -> "Tokenizer":
        """From the metadata of a GGUF file: byte-level BPE, or SentencePiece of model ``"llama"``.

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
        if len(kinds) != len(tokens):
            raise TokenizerError(f"{source}: expected {len(tokens)} token types; found {len(kinds)}.")
        vocabulary = {token: i for i, token in enumerate(tokens)}
        if len(vocabulary) != len(tokens):
            twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
            raise TokenizerError(f"{source}: expected tokens that differ; found {twice!r} twice.")
        if model == "gpt2":
            backend = _byte_level(vocabulary, merges, pre, source)
        else:
            backend = _sentencepiece(
                vocabulary, merges, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)), source
            )
        marked = {_CONTROL: backend.add_special_tokens, _USER_DEFINED: backend.add_tokens}
        for kind, add in marked.items():
            special = kind == _CONTROL
            add(
                [
                    AddedToken(t, special=special, normalized=False)
                    for t, k in zip(tokens, kinds, strict=True)
                    if k == kind
                ]
            )
        bos, eos = (_named(metadata, f"tokenizer.ggml.{key}_token_id", tokens, source) for key in ("bos", "eos"))
        adds_bos = metadata.get("tokenizer.ggml.add_bos_token", model == "llama" or pre in _WHOLE_WORDS)
        if adds_bos and bos is not None:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
            )
        return cls(backend, bos, eos, source)

    def encode(self, text: str, prepend_bos: bool | None = None) -> list[int]:
        """The ids of `text`.

        Args:
            text: any text; special tokens in it are recognised.
            prepend_bos: whether the ids begin with BOS; what the tokenizer does by itself unless given.

        Raises:
            TokenizerError: BOS is asked for and there is none.
        """
        if prepend_bos is None:
            ids = self._backend.encode(text).ids
        else:
            ids = self._backend.encode(text, add_special_tokens=False).ids
            if prepend_bos:
                if self.bos_id is None:
                    raise TokenizerError("prepend_bos: expected a tokenizer with a BOS token; this one has none.")
                ids = [self.bos_id, *ids]
        if self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            warnings.warn(
                f"The text begins with {self.token(self.bos_id)!r} and the tokenizer puts it there too: it is doubled. "
                "Leave it out of the text, or pass prepend_bos=False.",
                stacklevel=2,
            )
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str:
        """The text of one token; bytes that are no whole character are shown as U+FFFD."""
        # A decoder may strip the space that begins a text; after another token it is there.
        return self.decode([*self._before, token_id]).removeprefix(self.decode(self._before))

    def to_str_tokens(self, text: str | Sequence[int], prepend_bos: bool | None = None) -> list[str]:
        """The text of each token of a text or of ids."""
        ids = self.encode(text, prepend_bos) if isinstance(text, str) else text
        return [self.token(int(i)) for i in ids]

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokenizerError: it is more than one, or none.
        """
        ids = self.encode(text, prepend_bos=False)
        if len(ids) != 1:
            raise TokenizerError(
                f"{text!r}: expected one token; found {len(ids)}: {self.to_str_tokens(ids)}. "
                "A word within a text mostly has its space before it: try ' word'."
            )
        return ids[0]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _byte_level(vocabulary: dict[str, int], merges: list[Any], pre: str, source: str) -> tokenizers.Tokenizer:
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise TokenizerError(f"{source}: expected merges of two tokens; found others.")
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
    vocabulary: dict[str, int], scores: list[float], space_before: bool, source: str
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: of all adjacent pieces, the pair whose union has the highest score is merged first.

    A text that begins with a space gets no second one before it, as in transformers (llama.cpp puts one there).
    """
    if len(scores) != len(vocabulary):
        raise TokenizerError(f"{source}: expected {len(vocabulary)} scores; found {len(scores)}.")
    found = [
        (-score, cut, len(token) - cut, token[:cut], token[cut:])
        for token, score in zip(vocabulary, scores, strict=True)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    # Among equal scores longer left parts come first, as transformers sorts them.
    found.sort(key=lambda pair: (pair[0], -pair[1], -pair[2]))
    pairs = [(left, right) for *_, left, right in found]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if space_before else "never", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_before else steps)
    return backend


def _named(metadata: Mapping[str, Any], key: str, tokens: list[str], source: str) -> str | None:
    index = metadata.get(key)
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise TokenizerError(f"{source}, {key}: expected an id in 0..{len(tokens) - 1}; found {index!r}.")
    return tokens[index]
