"""A process of its own for a tokenizer or template that might abort, hang or take all memory: none of it is ours."""

import json
import os
import signal
import sys
import weakref
from contextlib import suppress
from multiprocessing import Pipe, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jaxlin.common.errors import TokenizerError

SECONDS = 6.0
"""How long a request may take, beside what its length allows."""

MEMORY = 2**30
"""What the process may map, in bytes, beside what the length of a request allows."""

LONGEST = 2**26
"""The longest answer, in bytes."""


class Process:
    """Runs `jaxlin.tokenizer.worker` and asks it; it ends with this object, or when it does not answer in time."""

    def __init__(self, source: str, memory: int = MEMORY) -> None:
        self._source = source
        if os.name != "posix" or not sys.executable:
            raise TokenizerError(f"{source}: expected a system that can start a process with limits; found {os.name}.")
        ours, theirs = Pipe()
        paths = json.dumps([path for path in sys.path if os.path.isabs(path)])
        worker = str(Path(__file__).with_name("worker.py"))
        arguments = [sys.executable, "-I", worker, str(theirs.fileno()), paths, str(memory)]
        # As multiprocessing starts its own, but without running the user's program again.
        program, *rest = (os.fsencode(each) for each in arguments)
        pid = util.spawnv_passfds(program, [program, *rest], [theirs.fileno()])
        theirs.close()
        self._connection: Connection | None = ours
        self._end = weakref.finalize(self, _end, pid, ours)

    def ask(self, expected: str, name: str, *arguments: Any, length: int = 0) -> Any:
        """What a request gives.

        Args:
            expected: what is expected of it, for messages.
            name: the method of `jaxlin.tokenizer.worker.Server`.
            arguments: its arguments.
            length: how much there is to do, in characters.

        Raises:
            TokenizerError: the request fails, takes too long or too much memory; after the last two no other is taken.
        """
        if self._connection is None:
            raise TokenizerError(f"{self._source}: an earlier text took too long or too much memory. Load it again.")
        try:
            self._connection.send_bytes(json.dumps([name, *arguments]).encode())
            allowed = SECONDS + length / 500_000
            if not self._connection.poll(allowed):
                raise TokenizerError(self._ended(expected, f"more than {allowed:.0f} seconds of work"))
            result, error = json.loads(self._connection.recv_bytes(LONGEST))
        except (EOFError, OSError) as fault:
            raise TokenizerError(
                self._ended(expected, "that the process for it died, as for want of memory")
            ) from fault
        if error is not None:
            raise TokenizerError(f"{self._source}: expected {expected}; found {error[:300]}")
        return result

    def _ended(self, expected: str, why: str) -> str:
        self._connection = None
        self._end()
        return f"{self._source}: expected {expected}; found {why}."


def _end(pid: int, connection: Connection) -> None:
    connection.close()
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
