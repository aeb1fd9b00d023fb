"""Running a tokenizer or rendering a chat template from files of strangers, in this process or in a worker process.

As a script, it answers requests on a socket until the socket is closed, within limits on memory and files. It imports
nothing of jaxlin, so that it starts fast.
"""

import json
import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

MAX_CHARACTERS = 1_000_000
"""The longest text that a decoder may make, beside 1000 characters for each token; also for a chat template."""


class Tokens:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.backend.no_padding()
        self.backend.no_truncation()

    @classmethod
    def read(cls, text: str, added: list[dict[str, Any]]) -> "Tokens":
        """The tokenizer in the text of a tokenizer.json, with tokens from the files beside it."""
        import tokenizers

        backend = tokenizers.Tokenizer.from_str(text)
        if added:
            backend.add_tokens([tokenizers.AddedToken(**each) for each in added])
        return cls(backend)

    def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a text."""
        return self.backend.encode(text, add_special_tokens=special).ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, as the vocabulary spells it."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, as the vocabulary spells it."""
        return self.backend.id_to_token(token_id)

    def size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


class Server:
    """Answers requests; each is a list of the name of a method, its own or one of `Tokens`, and its arguments."""

    def __init__(self) -> None:
        self.tokens: Tokens | None = None

    def load(self, text: str, added: list[dict[str, Any]]) -> int:
        """Read a tokenizer and try it on some texts; one more than the largest id."""
        self.tokens = Tokens.read(text, added)
        for sample in ("a", "Hello, world 123!\n", "  a  " * 8, "\u00e9\u4e2d\U0001f642", ""):
            with suppress(
                Exception
            ):  # it may have no token for a text; a panic, which is no Exception, is not suppressed
                self.decode(self.encode(sample, True)[:50], False)
        return self.tokens.size()

    def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a text, unless they are many more than its characters."""
        assert self.tokens is not None
        ids, limit = self.tokens.encode(text, special), 1000 + 100 * len(text)
        if len(ids) > limit:
            raise ValueError(f"{len(ids)} tokens for {len(text)} characters")
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids, unless it is much longer than tokens are."""
        assert self.tokens is not None
        text = self.tokens.decode(ids, skip_special_tokens)
        if len(text) > MAX_CHARACTERS + 1000 * len(ids):
            raise ValueError(f"{len(text)} characters for {len(ids)} tokens")
        return text

    def render(self, template: str, variables: dict[str, Any], now: str) -> str:
        """The text that a chat template makes of its variables; it has the functions that it has in transformers."""
        text = _render(template, variables, now)
        if len(text) > MAX_CHARACTERS + 10 * len(json.dumps(variables)):
            raise ValueError(f"a text of {len(text)} characters")
        return text

    def answer(self, request: bytes) -> bytes:
        """The result of a request and None, or None and the message of its error."""
        try:
            name, *arguments = json.loads(request)
            function = getattr(self if hasattr(self, name) else self.tokens, name)
            return json.dumps([function(*arguments), None]).encode()
        except BaseException as error:  # a panic of the library is no Exception
            return json.dumps([None, f"{type(error).__name__}: {error}"[:1000]]).encode()


def _render(template: str, variables: dict[str, Any], now: str) -> str:
    from datetime import datetime

    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tags around what the model writes; they do not change the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = datetime.fromisoformat(now).strftime
    compiled = environment.from_string(template)
    _close_files()
    return compiled.render(**variables)


def _close_files() -> None:
    """Let this process open no more files."""
    import jinja2.debug  # noqa: F401, which an error in a template would import

    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def limit(memory: int) -> None:
    """Bound the memory of this process, and let it write no file and print nothing."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for kind, bytes_ in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        try:
            hard = resource.getrlimit(kind)[1]
            bound = bytes_ if hard == resource.RLIM_INFINITY else min(bytes_, hard)
            resource.setrlimit(kind, (bound, bound))
        except (OSError, ValueError):
            continue  # macOS cannot bound the address space


def main() -> None:
    """Serve the socket of the first argument; the second lists the paths of modules, the third is the memory limit."""
    sys.path[:] = json.loads(sys.argv[2])
    limit(int(sys.argv[3]))
    connection, server = Connection(int(sys.argv[1])), Server()
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(server.answer(request))


if __name__ == "__main__":
    main()
