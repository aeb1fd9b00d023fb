"""How long a call takes, and how much memory: one set of helpers for all benchmarks."""

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
"""Seconds in which a program's threads let go of its memory."""


class Timing(NamedTuple):
    """Runs of one call.

    Attributes:
        seconds: of each run.
        resident: the most that the process held beyond what it held before, in bytes; None where it is not known.
    """

    seconds: list[float]
    resident: int | None

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.seconds)


def seconds(call: Callable[[], Any]) -> float:
    """How long `call` takes until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def once(call: Callable[[], Any]) -> tuple[float, int | None]:
    """The time of one call, and what it adds to the resident memory at its peak."""
    before = _reset_peak()
    took = seconds(call)
    return took, None if before is None else max(0, _held("VmHWM") - before)


def interleaved(
    runs: int, calls: Mapping[str, Callable[[], Any]], said: Callable[[str], None] = lambda name: None
) -> dict[str, Timing]:
    """Every call `runs` times, one after the other in each round, so that what disturbs one disturbs all.

    Args:
        runs: rounds; each begins with another call.
        calls: what is timed, by name.
        said: called with the name before each run.
    """
    found: dict[str, list[tuple[float, int | None]]] = {name: [] for name in calls}
    names = list(calls)
    with _alive_left_out():
        for turn in range(runs):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                said(name)
                found[name].append(once(calls[name]))
    return {name: _timing(pairs) for name, pairs in found.items()}


@contextmanager
def _alive_left_out() -> Iterator[None]:
    """Within it, what is alive now is no part of what Python collects.

    The many objects of torch and transformers are, through which each collection would look, and which a user who
    compiles a map need not have.
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
    """The program of a function, how long its tracing and compilation take, and its temporary memory in bytes."""
    with _alive_left_out():
        start = time.perf_counter()
        program = jax.jit(function).lower(*arguments).compile()
        took = time.perf_counter() - start
    analysis: Any = program.memory_analysis()
    return program, took, analysis.temp_size_in_bytes if analysis else 0


def peak() -> int | None:
    """The most that the process held since the last of `once` began, in bytes; None where it is not known."""
    try:
        return _held("VmHWM")
    except OSError:
        return None


def _held(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def _reset_peak() -> int | None:
    """Make the kernel count the peak anew, and return what is held; None where it does not."""
    # Or what an earlier call freed, or is about to, hides what this one takes.
    gc.collect()
    time.sleep(SETTLING)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
        return _held("VmRSS")
    except (OSError, AttributeError):
        return None
