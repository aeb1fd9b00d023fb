"""`Tokenizer`: text to token ids and back, from the files of a checkpoint or the metadata of a GGUF file."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxlin.common.arguments import checked
from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.backend import TokenizerParts
from jaxlin.tokenizer.byte_tokens import with_bytes
from jaxlin.tokenizer.chat import parse_templates
from jaxlin.tokenizer.files import read_parts
from jaxlin.tokenizer.gguf import read_gguf

LOG = logging.getLogger("jaxlin")

TOKENIZER_FILES = ("tokenizer.json", "tekken.json", "tokenizer.model")
"""The files that a tokenizer can be in; of several, the first is read."""

Ids = Sequence[int] | Int[np.ndarray, " n"]
"""Token ids."""


class Tokenizer:
    """Converts text to token ids and back; `to_str_tokens` and `to_single_token` are named as in TransformerLens.

    Attributes:
        bos_id: the id of the token that begins a text; None if there is none.
        eos_id: the id of the token that ends a text; None if there is none.
        stop_ids: the ids that end what a model writes, such as a chat model's end of turn: those in
            generation_config.json or in the metadata of a GGUF file; EOS alone if these name none.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend, self._source = parts.backend, parts.source
        self._named, self._chat_template = parts.named, parts.chat_template
        self._prefix = self._backend.encode("a", False)
        self.bos_id, self.eos_id = (self._id_of(parts, name) for name in ("bos_token", "eos_token"))
        self.stop_ids = tuple(parts.stop) or (() if self.eos_id is None else (self.eos_id,))

    def _id_of(self, parts: TokenizerParts, name: str) -> int | None:
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
        """The tokenizer in a tokenizer.json, with what the files beside it add.

        Args:
            tokenizer_json: the file of the tokenizer.
            tokenizer_config: names the BOS and EOS tokens, and may add tokens.
            generation_config: lists the ids that end a text.
            special_tokens_map: special tokens, in older checkpoints.
            added_tokens: more tokens, in older checkpoints.
            chat_template: the chat template, if it is in a file of its own.

        Raises:
            TokenizerError: a file cannot be read.
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
        """The tokenizer in the metadata of a GGUF file.

        Its ``tokenizer.ggml.model`` is ``"gpt2"`` (byte-level BPE), ``"llama"`` (SentencePiece's, with scores) or
        ``"gemma4"`` (SentencePiece's, with merges).

        Raises:
            TokenizerError: the tokenizer is of another kind, or its lists do not fit together.
        """
        return cls(read_gguf(metadata, source))

    def encode(self, text: str, prepend_bos: bool | None = None) -> list[int]:
        """The ids of `text`.

        Args:
            text: any text; special tokens in it are recognised.
            prepend_bos: whether the ids begin with BOS. By default they do if the tokenizer's files say so.

        Raises:
            TokenizerError: BOS is requested and there is none, or the vocabulary has no tokens for the text.
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
                f"The text begins with {self.token(self.bos_id)!r} and the tokenizer adds another: BOS is doubled. "
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
        """The ids of a conversation as `chat_text` writes it; BOS is among them only if the template writes it.

        Args:
            messages: the conversation, such as ``[{"role": "user", "content": "Hello"}]``.
            add_generation_prompt: whether the text ends with the beginning of the model's answer, so that the model
                goes on with its answer.
            template: the name of a template, if there are several.
            variables: other variables of the template, such as ``tools`` or ``enable_thinking``.

        Raises:
            TokenizerError: see `chat_text`.
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
        """The text that the model's chat template makes of a conversation; see `chat` for the arguments.

        The template runs in a process of its own, with the limits that `jaxlin.tokenizer.chat` describes.

        Raises:
            TokenizerError: there is no such template, the messages are no conversation, or the template refuses them
                or does not end.
        """
        templates = parse_templates(self._chat_template, self._source)
        variables["add_generation_prompt"] = add_generation_prompt
        return templates.text(messages, self._named, name=template, **variables)

    def decode(self, ids: Ids, skip_special_tokens: bool = False) -> str:
        """The text of `ids`.

        Raises:
            TokenizerError: a value is no id.
        """
        try:
            integers = [int(each) for each in ids]
        except (TypeError, ValueError):
            raise TokenizerError(f"Ids: expected a list of token ids; found {quoted(ids)}.") from None
        return self._backend.decode(integers, skip_special_tokens)

    def token(self, token_id: int) -> str:
        """The text of one token; bytes that are only a part of a character are written as ``<0xF0>``."""
        # A decoder may strip the space at the beginning of a text, so the token is decoded after another one.
        text = self.decode([*self._prefix, token_id]).removeprefix(self.decode(self._prefix))
        return (
            with_bytes(text, self._backend.id_to_token(int(token_id))) if "\N{REPLACEMENT CHARACTER}" in text else text
        )

    def to_str_tokens(self, text: str | Ids, prepend_bos: bool | None = None) -> list[str]:
        """The text of each token of a text or of ids.

        Raises:
            TokenizerError: the ids are no list of integers, such as those of several texts at once.
        """
        ids = self.encode(text, prepend_bos) if isinstance(text, str) else text
        if np.ndim(ids) != 1:
            raise TokenizerError(f"Ids: expected one list of token ids; found shape {np.shape(ids)}.")
        return [self.token(int(i)) for i in ids]

    def to_single_token(self, text: str) -> int:
        """The id of a text that is a single token.

        Raises:
            TokenizerError: the text is several tokens, or none.
        """
        ids = self.encode(text, prepend_bos=False)
        if len(ids) != 1:
            spaced = f" {text}"
            is_one = not text[:1].isspace() and len(self.encode(spaced, prepend_bos=False)) == 1
            hint = f" With the space before it, as within a text, {spaced!r} is one." if is_one else ""
            raise TokenizerError(f"{text!r}: expected one token; found {len(ids)}: {self.to_str_tokens(ids)}.{hint}")
        return ids[0]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._backend.size()

    def to_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return self._backend.to_json()


@checked
def read_tokenizer(files: Mapping[str, Path], source: str) -> Tokenizer | None:
    """The tokenizer of a checkpoint's folder; None, with a logged message, if there is none.

    Args:
        files: the files beside config.json, by name: those of `jaxlin.checkpoint.folder.TOKENIZER_FILES` that exist.
        source: the folder, for the message.

    Raises:
        TokenizerError: a file cannot be read.
    """
    if not any(name in files for name in TOKENIZER_FILES):
        names = ", ".join(TOKENIZER_FILES)
        LOG.warning("%s: none of %s: the model is loaded without a tokenizer and takes token ids.", source, names)
        return None
    return Tokenizer(read_parts(files))


@checked
def require_tokenizer(tokenizer: Tokenizer | None, subject: str) -> Tokenizer:
    """`tokenizer`, if it is not None; `subject` is what needs it, such as ``"A dose curve"``.

    Raises:
        TokenizerError: it is None, because the checkpoint has no tokenizer.
    """
    if tokenizer is None:
        raise TokenizerError(
            f"{subject} needs a tokenizer; found None: the checkpoint has no {', '.join(TOKENIZER_FILES)}. Put the "
            "model's tokenizer into its folder, or use what takes token ids: model.embed, local_map, attribute."
        )
    return tokenizer
