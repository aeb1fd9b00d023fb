"""Runs inputs, each in a folder of its own under an alarm, and judges the errors, memory and files of each."""

import functools
import logging
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzz.draws import Draw
from benchmarks.fuzz.readers import READERS, all_readers
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import MAX_MESSAGE_LENGTH, printable

SECONDS = 10.0
"""The seconds after which an input counts as endless."""

GROWTH = 200 * 2**20
"""Bytes of memory that an input may use beyond forty times its size."""

ROOM = 4 * 2**30
"""Bytes of address space that a worker may use beyond what it has when it starts."""

PREFIX = "jaxlin-fuzz-"
"""The prefix of the folders of inputs; an input may read its own folder alone."""


class Verdict(NamedTuple):
    """The outcome of an input.

    Attributes:
        reader: which it was for.
        number: which of the reader's it is.
        kind: "accepted", "refused", or how it failed.
        detail: of a failure, what was raised and where in jaxlin.
    """

    reader: str
    number: int
    kind: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether this outcome is a fault of jaxlin."""
        return self.kind not in ("accepted", "refused")


class Endless(BaseException):
    """Raised by the alarm. It is no `Exception`, so that no reader takes it for a damaged file."""


def run(seed: int, name: str, number: int, keep: Path | None = None) -> Verdict:
    """Make an input and read it.

    Args:
        seed: of the campaign.
        name: of the reader.
        number: of the input.
        keep: a folder for its files; one that is deleted afterwards unless given.
    """
    draw = Draw(f"{seed} {name} {number}")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)) if keep is None else keep
    folder.mkdir(exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = READERS[name].write(draw, folder)
            size, before = sum(path.lstat().st_size for path in folder.rglob("*")), _peak(reset=True)
            kind, detail = _read(read, folder)
        grown = _peak() - before
        if kind in ("accepted", "refused") and grown > GROWTH + 40 * size:
            kind, detail = "memory", f"{grown // 2**20} MiB for {size} bytes"
        return Verdict(name, number, kind, detail)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _read(read: Any, folder: Path) -> tuple[str, str]:
    touched: list[str] = []
    try:
        with _alarm(SECONDS), _watched(folder, touched):
            read()
    except JaxlinError as error:
        text = str(error)
        if printable(text) != text or len(text) > MAX_MESSAGE_LENGTH:
            return "message", f"{type(error).__name__} {_where(error)}: {text[:200]!r}"
        kind = "refused"
    except Endless as error:
        return "endless", f"more than {SECONDS:g} s {_where(error)}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        return "raw", f"{type(error).__name__} {_where(error)}: {str(error)[:200]!r}"
    else:
        kind = "accepted"
    return ("escape", touched[0]) if touched else (kind, "")


def _where(error: BaseException) -> str:
    """The innermost line of jaxlin in the traceback of an error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/jaxlin/" in frame.filename]
    frames = [frame for frame in frames if "/site-packages/" not in frame.filename]
    return f"at {frames[-1].filename.rsplit('/jaxlin/')[-1]}:{frames[-1].lineno}" if frames else "outside of jaxlin"


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Endless

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


EVENTS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"}
"""Audit events of Python that run something or open a connection."""

_WATCHED: list[tuple[str, list[str]]] = []
"""The folder of the present input, and the list of forbidden things that it did."""


@functools.cache
def _watch() -> None:
    sys.addaudithook(_audit)  # which cannot be taken out again


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    folder, touched = _WATCHED[-1]
    path = os.fsdecode(arguments[0]) if event == "open" and isinstance(arguments[0], str | bytes) else ""
    if event in EVENTS or path.startswith("/etc/") or (f"/{PREFIX}" in path and not path.startswith(folder)):
        touched.append(f"{event} {arguments[:1]!r}"[:200])


@contextmanager
def _watched(folder: Path, touched: list[str]) -> Iterator[None]:
    """Add to `touched` everything forbidden that the input in `folder` does."""
    _watch()
    _WATCHED.append((str(folder), touched))
    try:
        yield
    finally:
        _WATCHED.pop()


def _peak(reset: bool = False) -> int:
    """The peak resident memory since the last reset, in bytes; 0 where Linux does not report it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def rounds(names: list[str], first: int) -> Iterator[tuple[str, int]]:
    """An endless sequence of inputs; a round has as many of each reader as its weight."""
    numbers = dict.fromkeys(names, first)
    while True:
        for name in names:
            for _ in range(READERS[name].weight):
                yield name, numbers[name]
                numbers[name] += 1


def work(connection: Connection, seed: int, names: list[str], first: int, skip: int) -> None:
    """The loop of a worker: report which input begins, then its outcome."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import jaxlin

    all_readers()
    logging.getLogger("jaxlin").setLevel(logging.ERROR)
    jaxlin.load()
    sizes = Path("/proc/self/statm")
    mapped = int(sizes.read_text().split()[0]) * resource.getpagesize() if sizes.exists() else math.inf
    if mapped < math.inf:
        resource.setrlimit(resource.RLIMIT_AS, (int(mapped) + ROOM, int(mapped) + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for count, (name, number) in enumerate(rounds(names, first)):
        if count >= skip:
            connection.send((name, number))
            connection.send(run(seed, name, number))


def campaign(seed: int, names: list[str], *, first: int, inputs: float, minutes: float) -> Iterator[Verdict]:
    """The verdict of each input, until there were so many or the time is over.

    They run in one process; where it dies or does not come back, that is the input's verdict, and another goes on
    behind it.
    """
    ends, done = time.monotonic() + minutes * 60, 0
    while done < inputs and time.monotonic() < ends:
        here, there = get_context("spawn").Pipe()
        worker = get_context("spawn").Process(target=work, args=(there, seed, names, first, done), daemon=True)
        worker.start()
        there.close()
        current: tuple[str, int] | None = None
        try:
            while done < inputs and time.monotonic() < ends:
                if not here.poll(SECONDS + (5 if current else 120)):
                    yield Verdict(*(current or ("none", 0)), "endless", "no signal ended it")
                    done += 1
                    break
                message = here.recv()
                if isinstance(message, Verdict):
                    current, done = None, done + 1
                    yield message
                else:
                    current = message
        except EOFError:
            worker.join()
            yield Verdict(*(current or ("none", 0)), "dead", f"exit code {worker.exitcode}")
            done += 1
        finally:
            worker.kill()
            worker.join()
            here.close()
