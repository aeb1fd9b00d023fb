"""Chat templates: a conversation as the text that a chat model was trained on.

A template is a program of a stranger in the language of Jinja. It runs in Jinja's sandbox, in a process of its own with
limits on time and memory, which opens no file and writes none. It is given what transformers gives one: the messages,
tools and documents, the special tokens, `raise_exception`, `tojson`, loop controls and `strftime_now`. The last tells
the date and time of the call and nothing later; a template that takes a date as a variable, as Llama's ``date_string``,
is made reproducible by giving it.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.process import Process

_LONGEST = 1_000_000
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatTemplates:
    """The templates of a checkpoint by their names, of which ``"default"`` is the one of an ordinary conversation."""

    by_name: Mapping[str, str]
    source: str

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        special: Mapping[str, str],
        *,
        name: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: what was said, each with its ``role`` and its ``content``.
            special: the special tokens by their names, such as ``bos_token``.
            name: which of several templates; ``"tool_use"`` if there is one and tools are given, or ``"default"``,
                unless given.
            variables: what else the template is given.

        Raises:
            TokenizerError: no template, no conversation, or a template that refuses it or does not end.
        """
        template = self._template(name, variables)
        conversation = [_aliased(message) for message in checked_messages(messages)]
        given = {**special, "tools": None, "documents": None, **variables, "messages": conversation}
        try:
            length = len(json.dumps(given))
        except (TypeError, ValueError) as error:
            raise TokenizerError(f"Chat: expected texts, numbers, lists and objects; found {error}."[:300]) from error
        process = Process(self.source)
        now = datetime.datetime.now().isoformat()
        return process.ask("a chat template for these messages", "render", template, given, now, length=length)

    def _template(self, name: str | None, variables: Mapping[str, Any]) -> str:
        if not self.by_name:
            raise TokenizerError(
                f"{self.source}: expected a chat template, in tokenizer_config.json, chat_template.jinja or the "
                "metadata of a GGUF; found none, as of a model that was not trained on conversations."
            )
        usual = "tool_use" if variables.get("tools") is not None and "tool_use" in self.by_name else "default"
        wanted = usual if name is None else name
        if wanted not in self.by_name:
            raise TokenizerError(
                f"Chat template: expected one of {', '.join(map(quoted, self.by_name))}; found {quoted(wanted)}."
            )
        return self.by_name[wanted]


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """A conversation as a list of objects.

    Raises:
        TokenizerError: another thing.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise TokenizerError(
            'Chat: expected a list of messages, such as [{"role": "user", "content": "Hello"}]; '
            f"found {quoted(messages)}."
        )
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TokenizerError(f"Chat: expected messages, each an object with its role; found {quoted(message)}.")
    return [dict(message) for message in messages]


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning stands under each name that templates look for it under."""
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def templates_of(stored: Any, source: str) -> ChatTemplates:
    """The chat templates of a checkpoint.

    Args:
        stored: a template, a list of named ones, or None.
        source: the checkpoint, for messages.

    Raises:
        TokenizerError: what is no template.
    """
    if stored is None:
        return ChatTemplates({}, source)
    listed = [{"name": "default", "template": stored}] if isinstance(stored, str) else stored
    if not isinstance(listed, list):
        raise TokenizerError(f"{source}, chat_template: expected a text or a list of them; found {quoted(stored)}.")
    by_name = {}
    for each in listed:
        name, template = (each.get(key) for key in ("name", "template")) if isinstance(each, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str) or len(template) > _LONGEST:
            raise TokenizerError(
                f"{source}, chat_template: expected a name and a template of at most {_LONGEST} characters; "
                f"found {quoted(each)}."
            )
        by_name[name] = template
    return ChatTemplates(by_name, source)
