"""Chat templates write a conversation as the text that a chat model was trained on.

A template is a stranger's program in the language of Jinja. It runs in Jinja's sandbox, in a process of its own that
has limits on time and memory and can open no file and write none. It gets what transformers gives a template: the
messages, tools and documents, the special tokens, `raise_exception`, `tojson`, loop controls and `strftime_now`, which
tells the date and time of the call. A template that takes the date as a variable, such as Llama's ``date_string``, is
reproducible if that variable is passed.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.process import WorkerProcess

_MAX_LENGTH = 1_000_000
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatTemplates:
    """The chat templates of a checkpoint, by name; that of an ordinary conversation is ``"default"``."""

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
            messages: the conversation; each message has a ``role`` and usually a ``content``.
            special: the special tokens by name, such as ``bos_token``.
            name: the name of a template. By default it is ``"tool_use"`` if there is such a template and tools are
                passed, else ``"default"``.
            variables: other variables of the template.

        Raises:
            TokenizerError: there is no such template, the messages are no conversation, or the template refuses them
                or does not end.
        """
        template = self._template(name, variables)
        conversation = [_aliased(message) for message in checked_messages(messages)]
        values = {**special, "tools": None, "documents": None, **variables, "messages": conversation}
        try:
            length = len(json.dumps(values))
        except (TypeError, ValueError) as error:
            raise TokenizerError(f"Chat: expected texts, numbers, lists and objects; found {error}."[:300]) from error
        process = WorkerProcess(self.source)
        now = datetime.datetime.now().isoformat()
        return process.request("a chat template for these messages", "render", template, values, now, length=length)

    def _template(self, name: str | None, variables: Mapping[str, Any]) -> str:
        if not self.by_name:
            raise TokenizerError(
                f"{self.source}: expected a chat template, in tokenizer_config.json, chat_template.jinja or the "
                "metadata of a GGUF; found none. Perhaps the model was not trained on conversations."
            )
        default = "tool_use" if variables.get("tools") is not None and "tool_use" in self.by_name else "default"
        name = default if name is None else name
        if name not in self.by_name:
            raise TokenizerError(
                f"Chat template: expected one of {', '.join(map(quoted, self.by_name))}; found {quoted(name)}."
            )
        return self.by_name[name]


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages of a conversation, as a list of dictionaries.

    Raises:
        TokenizerError: the value is not a list of messages that each have a role.
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
    """A message with its reasoning under each of the keys that templates read it from."""
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def parse_templates(stored: Any, source: str) -> ChatTemplates:
    """The chat templates of a checkpoint.

    Args:
        stored: the value in the checkpoint: a template, a list of named ones, or None.
        source: the name of the checkpoint, for messages.

    Raises:
        TokenizerError: the value is none of these.
    """
    if stored is None:
        return ChatTemplates({}, source)
    templates = [{"name": "default", "template": stored}] if isinstance(stored, str) else stored
    if not isinstance(templates, list):
        raise TokenizerError(f"{source}, chat_template: expected a text or a list of them; found {quoted(stored)}.")
    by_name = {}
    for each in templates:
        name, template = (each.get(key) for key in ("name", "template")) if isinstance(each, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str) or len(template) > _MAX_LENGTH:
            raise TokenizerError(
                f"{source}, chat_template: expected a name and a template of at most {_MAX_LENGTH} characters; "
                f"found {quoted(each)}."
            )
        by_name[name] = template
    return ChatTemplates(by_name, source)
