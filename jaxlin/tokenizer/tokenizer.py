"""Text to token ids and back: `Tokenizer`, of whatever files it is made."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.byte_tokens import with_bytes
from jaxlin.tokenizer.chat import templates_of
from jaxlin.tokenizer.files import read_parts
from jaxlin.tokenizer.gguf import gguf_parts
from jaxlin.tokenizer.parts import Parts

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

    def __init__(self, parts: Parts) -> None:
        self._backend, self._source = parts.backend, parts.source
        self._named, self._chat_template = parts.named, parts.chat_template
        self._before = self._backend.encode("a", False)
        self.bos_id, self.eos_id = (self._id_of(parts, name) for name in ("bos_token", "eos_token"))
        self.stop_ids = tuple(parts.stop) or (() if self.eos_id is None else (self.eos_id,))

    def _id_of(self, parts: Parts, name: str) -> int | None:
        token = parts.named.get(name)
        index = None if token is None else self._backend.token_to_id(token)
        if token is not None and index is None:
            raise TokenizerError(
                f"{self._source}: expected the {name} {quoted(token)} in the vocabulary; found no such token."
            )
        return index

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} ids, bos_id={self.bos_id}, eos_id={self.eos_id})"

    @classmethod
    def from_files(
        cls,
        tokenizer_json: Path,
        tokenizer_config: Path | None = None,
        generation_config: Path | None = None,
        special_tokens_map: Path | None = None,
        added_tokens: Path | None = None,
        chat_template: Path | None = None,
    ) -> "Tokenizer":
        """From tokenizer.json, and what the others say of it.

        Args:
            tokenizer_json: the tokenizer.
            tokenizer_config: the names of the BOS and EOS tokens, and more tokens.
            generation_config: the ids that end a text.
            special_tokens_map: what older files say of special tokens.
            added_tokens: what older files add to the tokens.
            chat_template: the template of conversations, where it is a file of its own.

        Raises:
            TokenizerError: a file that cannot be read.
        """
        files = {
            "tokenizer.json": tokenizer_json,
            "tokenizer_config.json": tokenizer_config,
            "generation_config.json": generation_config,
            "special_tokens_map.json": special_tokens_map,
            "added_tokens.json": added_tokens,
            "chat_template.jinja": chat_template,
        }
        return cls(read_parts({name: path for name, path in files.items() if path is not None}))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], source: str = "GGUF") -> "Tokenizer":
        """From the metadata of a GGUF file: byte-level BPE, or SentencePiece of model ``"llama"``.

        Raises:
            TokenizerError: another kind of tokenizer, or lists that do not fit together.
        """
        return cls(gguf_parts(metadata, source))

    def encode(self, text: str, prepend_bos: bool | None = None) -> list[int]:
        """The ids of `text`.

        Args:
            text: any text; special tokens in it are recognised.
            prepend_bos: whether the ids begin with BOS; what the tokenizer does by itself unless given.

        Raises:
            TokenizerError: BOS is asked for and there is none, or a tokenizer that has no tokens for the text.
        """
        if prepend_bos is None:
            ids = self._backend.encode(text, True)
        else:
            ids = self._backend.encode(text, False)
            if prepend_bos:
                if self.bos_id is None:
                    raise TokenizerError("prepend_bos: expected a tokenizer with a BOS token; this one has none.")
                ids = [self.bos_id, *ids]
        self._warn_of_two_bos(ids)
        return ids

    def _warn_of_two_bos(self, ids: list[int]) -> None:
        if self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            warnings.warn(
                f"The text begins with {self.token(self.bos_id)!r} and the tokenizer puts it there too: it is doubled. "
                "Leave it out of the text, or pass prepend_bos=False.",
                stacklevel=3,
            )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """The ids of a conversation, as `chat_text` writes it; nothing is put before them that the template does not.

        Args:
            messages: what was said, such as ``[{"role": "user", "content": "Hello"}]``.
            add_generation_prompt: whether the model's answer is begun, so that it writes it and not the user's next.
            template: the name of a template where there are several.
            variables: what else the template takes, such as ``tools`` or ``enable_thinking``.

        Raises:
            TokenizerError: as of `chat_text`.
        """
        variables["add_generation_prompt"] = add_generation_prompt
        ids = self._backend.encode(self.chat_text(messages, template=template, **variables), False)
        self._warn_of_two_bos(ids)
        return ids

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation by the model's chat template, which is run with limits: `jaxlin.tokenizer.chat`.

        Raises:
            TokenizerError: no template, no conversation, or a template that refuses it or does not end.
        """
        templates = templates_of(self._chat_template, self._source)
        given = {"add_generation_prompt": add_generation_prompt, **variables}
        return templates.text(messages, self._named, name=template, **given)

    def decode(self, ids: Ids, skip_special_tokens: bool = False) -> str:
        """The text of `ids`.

        Raises:
            TokenizerError: what is no id.
        """
        try:
            plain = [int(each) for each in ids]
        except (TypeError, ValueError):
            raise TokenizerError(f"Ids: expected a list of token ids; found {quoted(ids)}.") from None
        return self._backend.decode(plain, skip_special_tokens)

    def token(self, token_id: int) -> str:
        """The text of one token; bytes that are no whole character are written as ``<0xF0>``."""
        # A decoder may strip the space that begins a text; after another token it is there.
        text = self.decode([*self._before, token_id]).removeprefix(self.decode(self._before))
        return (
            with_bytes(text, self._backend.id_to_token(int(token_id))) if "\N{REPLACEMENT CHARACTER}" in text else text
        )

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
        return self._backend.size()

    def to_json(self) -> str:
        """The text of a tokenizer.json of the same tokenizer."""
        return self._backend.to_json()
