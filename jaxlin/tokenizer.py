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


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


GGUF_PRE_TOKENIZERS = {
    "default": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: _split(_WORDS % "{1,3}"),
    "qwen2": lambda: _split(_WORDS % ""),
}
"""How text is split before merging, by the name a GGUF file gives it (``tokenizer.ggml.pre``)."""

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
        # The library raises bare Exception.
        except Exception as error:
            raise TokenizerError(f"{tokenizer_json}: expected a tokenizer; found {error}."[:300]) from error
        names: dict[str, str | None] = {"bos_token": None, "eos_token": None}
        if tokenizer_config is not None:
            try:
                config = json.loads(tokenizer_config.read_text(encoding="utf-8"))
                for name in names:
                    token = config.get(name)
                    names[name] = token.get("content") if isinstance(token, dict) else token
            except (ValueError, AttributeError, OSError) as error:
                raise TokenizerError(f"{tokenizer_config}: expected a JSON object; found {error}."[:300]) from error
        return cls(backend, names["bos_token"], names["eos_token"], str(tokenizer_json))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], source: str = "GGUF") -> "Tokenizer":
        """From the metadata of a GGUF file: byte-level BPE.

        Raises:
            TokenizerError: another kind of tokenizer, or lists that do not fit together.
        """
        model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
        if model != "gpt2":
            raise TokenizerError(f"{source}: expected a tokenizer of model gpt2 (byte-level BPE); found {model!r}.")
        if pre not in GGUF_PRE_TOKENIZERS:
            known = ", ".join(GGUF_PRE_TOKENIZERS)
            raise TokenizerError(f"{source}, tokenizer.ggml.pre: expected one of {known}; found {pre!r}.")
        tokens, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
        if not isinstance(tokens, list) or not isinstance(merges, list):
            raise TokenizerError(f"{source}: expected lists of tokens and merges; found none.")
        kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
        if len(kinds) != len(tokens):
            raise TokenizerError(f"{source}: expected {len(tokens)} token types; found {len(kinds)}.")
        pairs = [tuple(merge.split(" ")) for merge in merges]
        if any(len(pair) != 2 for pair in pairs):
            raise TokenizerError(f"{source}: expected merges of two tokens; found others.")
        vocabulary = {token: i for i, token in enumerate(tokens)}
        try:
            bpe = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe")
        except Exception as error:
            raise TokenizerError(f"{source}: expected merges of known tokens; found {error}."[:300]) from error
        backend = tokenizers.Tokenizer(bpe)
        backend.pre_tokenizer = GGUF_PRE_TOKENIZERS[pre]()
        backend.decoder = decoders.ByteLevel()
        if pre == "qwen2":
            backend.normalizer = normalizers.NFC()
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
        if metadata.get("tokenizer.ggml.add_bos_token") and bos is not None:
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
        return self.decode([token_id])

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


def _named(metadata: Mapping[str, Any], key: str, tokens: list[str], source: str) -> str | None:
    index = metadata.get(key)
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise TokenizerError(f"{source}, {key}: expected an id in 0..{len(tokens) - 1}; found {index!r}.")
    return tokens[index]
