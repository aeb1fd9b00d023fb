"""A worker process for a tokenizer or chat template of a stranger, which might abort, hang or take all memory."""

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

REQUEST_SECONDS = 6.0
"""How long a request may take; a long one gets more time in proportion to its length."""

WORKER_MEMORY = 2**30
"""How many bytes the process may map."""

MAX_ANSWER = 2**26
"""The length of the longest answer, in bytes."""


class WorkerProcess:
    """A process that runs `jaxlin.tokenizer.worker`. It ends with this object, or when it does not answer in time."""

    def __init__(self, source: str, memory: int = WORKER_MEMORY) -> None:
        self._source = source
        if os.name != "posix" or not sys.executable:
            raise TokenizerError(f"{source}: expected a system that can start a process with limits; found {os.name}.")
        ours, theirs = Pipe()
        paths = json.dumps([path for path in sys.path if os.path.isabs(path)])
        worker = str(Path(__file__).with_name("worker.py"))
        arguments = [sys.executable, "-I", worker, str(theirs.fileno()), paths, str(memory)]
        # multiprocessing starts its processes like this too, but then runs the user's program again in them.
        program, *rest = (os.fsencode(each) for each in arguments)
        pid = util.spawnv_passfds(program, [program, *rest], [theirs.fileno()])
        theirs.close()
        self._connection: Connection | None = ours
        self._end = weakref.finalize(self, _end, pid, ours)

    def request(self, expected: str, name: str, *arguments: Any, length: int = 0) -> Any:
        """The result of a request.

        Args:
            expected: what the request should give, in words, for messages.
            name: a method of `jaxlin.tokenizer.worker.Server`.
            arguments: its arguments, which are sent as JSON.
            length: the length of the work, in characters.

        Raises:
            TokenizerError: the request fails, or takes too long or too much memory. In the latter cases the process
                ends, and later requests fail too.
        """
        if self._connection is None:
            raise TokenizerError(f"{self._source}: an earlier text took too long or too much memory. Load it again.")
        try:
            self._connection.send_bytes(json.dumps([name, *arguments]).encode())
            seconds = REQUEST_SECONDS + length / 500_000
            if not self._connection.poll(seconds):
                raise TokenizerError(self._stop(expected, f"more than {seconds:.0f} seconds of work"))
            result, error = json.loads(self._connection.recv_bytes(MAX_ANSWER))
        except (EOFError, OSError) as fault:
            raise TokenizerError(self._stop(expected, "that its process died, perhaps for lack of memory")) from fault
        if error is not None:
            raise TokenizerError(f"{self._source}: expected {expected}; found {error[:300]}")
        return result

    def _stop(self, expected: str, reason: str) -> str:
        """End the process; the message that says why."""
        self._connection = None
        self._end()
        return f"{self._source}: expected {expected}; found {reason}."


def _end(pid: int, connection: Connection) -> None:
    connection.close()
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
