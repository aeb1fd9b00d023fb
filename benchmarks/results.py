"""What a benchmark finds, and how it is written to JSON."""

import functools
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from benchmarks.bars import BARS
from benchmarks.floor import Floor
from benchmarks.timing import Timing

RESULTS = Path(__file__).parent / "results"
"""Where those that are committed lie."""

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")


@dataclass(frozen=True)
class Row:
    """One method at one size.

    Attributes:
        group: the benchmark.
        name: the method.
        size: what it depends on, such as tokens.
        seconds: of each run.
        ours: whether it is jaxlin's, and no peer's.
        compile: seconds of tracing and compilation, apart from the runs.
        temporary: bytes of the compiled program beside its arguments and results.
        resident: the most that the process held beyond what it held before, in bytes.
        floor: the least time there is.
        figures: others that were measured on the way.
    """

    group: str
    name: str
    size: Mapping[str, int | str]
    seconds: list[float]
    ours: bool = True
    compile: float | None = None
    temporary: int | None = None
    resident: int | None = None
    floor: Floor | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, group: str, name: str, size: Mapping[str, int | str], timing: Timing, **more: Any) -> "Row":
        """A row of timed runs."""
        return cls(group, name, size, timing.seconds, resident=timing.resident, **more)

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.seconds)

    @property
    def fraction(self) -> float | None:
        """How much of the floor is reached: 1 is as fast as the products alone."""
        return None if self.floor is None else self.floor.seconds / self.median

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        found = {**asdict(self), "median": self.median, "fraction": self.fraction}
        if self.floor is not None:
            found["floor"]["seconds"] = self.floor.seconds
        return found


@dataclass(frozen=True)
class Ratio:
    """A figure that a bar is for.

    Attributes:
        key: of `benchmarks.bars.BARS`.
        size: at which it was measured.
        value: what it is.
    """

    key: str
    size: Mapping[str, int | str]
    value: float

    @property
    def met(self) -> bool | None:
        """Whether it meets its bar."""
        return BARS[self.key].met(self.value)

    def to_dict(self) -> dict[str, Any]:
        """All of it with its bar, for JSON."""
        bar = BARS[self.key]
        return {**asdict(self), "says": bar.says, "limit": bar.limit, "at_least": bar.at_least, "met": self.met}


Finding = Row | Ratio | str
"""What a benchmark yields: rows, ratios, and notes of what was left out and why."""


def document(findings: list[Finding], *, command: str, **said: Any) -> dict[str, Any]:
    """The JSON of a run.

    Args:
        findings: all of them.
        command: that made them.
        said: checkpoint, dtype, seeds and the like.
    """
    return {
        "command": command,
        "commit": commit(RESULTS.parent),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": device(),
        **said,
        "rows": [found.to_dict() for found in findings if isinstance(found, Row)],
        "ratios": [found.to_dict() for found in findings if isinstance(found, Ratio)],
        "notes": [found for found in findings if isinstance(found, str)],
    }


@functools.cache  # a run says what it began with
def commit(folder: Path) -> str | None:
    """The commit that is checked out, and a + where tracked files differ from it; None outside of a repository."""
    asked = ["git", "describe", "--always", "--abbrev=9", "--exclude=*", "--dirty=+"]
    try:
        said = subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


def device() -> dict[str, Any]:
    """What the run was on."""
    first = jax.devices()[0]
    return {
        "kind": first.device_kind,
        "platform": first.platform,
        "count": jax.device_count(),
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "processor": _processor(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
