"""Measures how long a call takes and how much memory, for all benchmarks."""

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
SETTLING = 0.05
"""Seconds that the threads of a program get to free its memory."""


class Timing(NamedTuple):
    """Runs of one call.

    Attributes:
        seconds: the time of each run.
        resident: bytes by which the memory of the process grew at its peak; None where it is not known.
    """

    seconds: list[float]
    resident: int | None

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.seconds)


def seconds(call: Callable[[], Any]) -> float:
    """The time from calling `call` until its result is computed."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def once(call: Callable[[], Any]) -> tuple[float, int | None]:
    """The time of one call, and the bytes by which resident memory grows at its peak."""
    before = _reset_peak()
    took = seconds(call)
    return took, None if before is None else max(0, _memory("VmHWM") - before)


def interleaved(
    runs: int, calls: Mapping[str, Callable[[], Any]], announce: Callable[[str], None] = lambda name: None
) -> dict[str, Timing]:
    """Every call `runs` times, one after the other in each round, so that what disturbs one disturbs all.

    Args:
        runs: rounds; each begins with another call.
        calls: the calls to time, by name.
        announce: called with the name of a call before each of its runs.
    """
    measured: dict[str, list[tuple[float, int | None]]] = {name: [] for name in calls}
    names = list(calls)
    with _without_older_objects():
        for turn in range(runs):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                announce(name)
                measured[name].append(once(calls[name]))
    return {name: _timing(pairs) for name, pairs in measured.items()}


@contextmanager
def _without_older_objects() -> Iterator[None]:
    """Keep Python's garbage collector from visiting the objects that exist now.

    Those of torch and transformers are many, and someone who only compiles a map does not have them.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _timing(pairs: list[tuple[float, int | None]]) -> Timing:
    rises = [rise for _, rise in pairs if rise is not None]
    return Timing([took for took, _ in pairs], max(rises) if rises else None)


def compiled(function: Any, *arguments: Any) -> tuple[Any, float, int]:
    """The compiled program of a function, the seconds of tracing and compilation, and its temporary memory in bytes."""
    with _without_older_objects():
        start = time.perf_counter()
        program = jax.jit(function).lower(*arguments).compile()
        took = time.perf_counter() - start
    analysis: Any = program.memory_analysis()
    return program, took, analysis.temp_size_in_bytes if analysis else 0


def peak() -> int | None:
    """The peak memory of the process since the last call of `once` began, in bytes; None where it is not known."""
    try:
        return _memory("VmHWM")
    except OSError:
        return None


def _memory(field: str) -> int:
    """A field of the status of this process, in bytes."""
    match = re.search(rf"{field}:\s+(\d+)", STATUS.read_text())
    assert match is not None
    return 1024 * int(match[1])


def _reset_peak() -> int | None:
    """Make the kernel count the peak anew, and return the present memory; None where the kernel does not."""
    # Memory that an earlier call has freed, or is about to free, would hide what this one takes.
    gc.collect()
    time.sleep(SETTLING)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
        return _memory("VmRSS")
    except (OSError, AttributeError):
        return None
