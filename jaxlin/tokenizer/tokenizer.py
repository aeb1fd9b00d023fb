"""Text to token ids and back: a thin class over the `tokenizers` library."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int

from jaxlin.checkpoint.strict_json import read_json
from jaxlin.errors import CheckpointError, TokenizerError
from jaxlin.tokenizer.gguf import gguf_tokenizer

Ids = Sequence[int] | Int[np.ndarray, " n"]
"""Token ids."""


class Tokenizer:
    """Text to ids and back; `to_str_tokens` and `to_single_token` are named as in TransformerLens.

    Attributes:
        bos_id: the id of the token that begins a text; None if there is none.
        eos_id: the id of the token that ends one; None if there is none.
        stop_ids: the ids that end what a model writes: those of generation_config.json or of the GGUF's metadata, with
            which a chat model ends its turns too; EOS alone if they name none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        bos: str | None = None,
        eos: str | None = None,
        source: str = "tokenizer",
        stop: Sequence[int] = (),
    ) -> None:
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._source = source
        self._before = self._encoded("a", special=False)
        for name, token in (("bos_token", bos), ("eos_token", eos)):
            if token is not None and backend.token_to_id(token) is None:
                raise TokenizerError(f"{source}: expected the {name} {token!r} in the vocabulary; found no such token.")
        self.bos_id = None if bos is None else backend.token_to_id(bos)
        self.eos_id = None if eos is None else backend.token_to_id(eos)
        self.stop_ids = tuple(stop) or (() if self.eos_id is None else (self.eos_id,))

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} ids, bos_id={self.bos_id}, eos_id={self.eos_id})"

    @classmethod
    def from_files(
        cls, tokenizer_json: Path, tokenizer_config: Path | None = None, generation_config: Path | None = None
    ) -> "Tokenizer":
        """From tokenizer.json, and what the others say of it.

        Args:
            tokenizer_json: the tokenizer.
            tokenizer_config: the names of the BOS and EOS tokens.
            generation_config: the ids that end a text.

        Raises:
            TokenizerError: a file that cannot be read.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(tokenizer_json.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises no other
            raise TokenizerError(f"{tokenizer_json}: expected a tokenizer; found {error}."[:300]) from error
        said = {} if tokenizer_config is None else _read(tokenizer_config)
        names: dict[str, str | None] = {}
        for name in ("bos_token", "eos_token"):
            token = said.get(name)
            names[name] = token.get("content") if isinstance(token, dict) else token
            if not isinstance(names[name], str | None):
                raise TokenizerError(f"{tokenizer_config}, {name}: expected a token; found {token!r}."[:300])
        stop = () if generation_config is None else _stop_ids(generation_config)
        return cls(backend, names["bos_token"], names["eos_token"], str(tokenizer_json), stop)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], source: str = "GGUF") -> "Tokenizer":
        """From the metadata of a GGUF file: byte-level BPE, or SentencePiece of model ``"llama"``.

        Raises:
            TokenizerError: another kind of tokenizer, or lists that do not fit together.
        """
        backend, bos, eos, stop = gguf_tokenizer(metadata, source)
        return cls(backend, bos, eos, source, stop)

    def encode(self, text: str, prepend_bos: bool | None = None) -> list[int]:
        """The ids of `text`.

        Args:
            text: any text; special tokens in it are recognised.
            prepend_bos: whether the ids begin with BOS; what the tokenizer does by itself unless given.

        Raises:
            TokenizerError: BOS is asked for and there is none, or a tokenizer that has no tokens for the text.
        """
        if prepend_bos is None:
            ids = self._encoded(text, special=True)
        else:
            ids = self._encoded(text, special=False)
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

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=special).ids
        except Exception as error:  # the library raises no other
            raise TokenizerError(f"{self._source}: expected tokens for each part of {text!r:.100}; {error}.") from error

    def decode(self, ids: Ids, skip_special_tokens: bool = False) -> str:
        """The text of `ids`."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str:
        """The text of one token; bytes that are no whole character are shown as U+FFFD."""
        # A decoder may strip the space that begins a text; after another token it is there.
        return self.decode([*self._before, token_id]).removeprefix(self.decode(self._before))

    def to_str_tokens(self, text: str | Ids, prepend_bos: bool | None = None) -> list[str]:
        """The text of each token of a text or of ids.

        Raises:
            TokenizerError: ids that are no list of integers, as those of several texts together.
        """
        ids = self.encode(text, prepend_bos) if isinstance(text, str) else text
        if np.ndim(ids) != 1:
            raise TokenizerError(f"Ids: expected one list of token ids; found shape {np.shape(ids)}.")
        return [self.token(int(i)) for i in ids]

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokenizerError: it is more than one, or none.
        """
        ids = self.encode(text, prepend_bos=False)
        if len(ids) != 1:
            spaced = f" {text}"
            one = not text[:1].isspace() and len(self.encode(spaced, prepend_bos=False)) == 1
            hint = f" With the space before it, as within a text, {spaced!r} is one." if one else ""
            raise TokenizerError(f"{text!r}: expected one token; found {len(ids)}: {self.to_str_tokens(ids)}.{hint}")
        return ids[0]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error


def _stop_ids(generation_config: Path) -> list[int]:
    found = _read(generation_config).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise TokenizerError(f"{generation_config}, eos_token_id: expected an id or a list of them; found {found!r}.")
    return ids
