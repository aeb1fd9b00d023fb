"""The results of a benchmark, and how they are written to JSON."""

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
"""The folder of the committed results."""

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")


@dataclass(frozen=True)
class Row:
    """One method at one size.

    Attributes:
        group: the benchmark.
        name: the method.
        size: what the time depends on, such as the number of tokens.
        seconds: the time of each run.
        ours: whether the method is jaxlin's, rather than a peer's.
        compile: seconds of tracing and compilation, which are no part of the runs.
        temporary: bytes that the compiled program takes beside its arguments and results.
        resident: bytes by which the memory of the process grew at its peak.
        floor: the least time that the method can take.
        figures: other values that were measured on the way.
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
        """A row of the runs of `timing`; `more` are other attributes."""
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
        """All attributes and what follows from them, for JSON."""
        fields = {**asdict(self), "median": self.median, "fraction": self.fraction}
        if self.floor is not None:
            fields["floor"]["seconds"] = self.floor.seconds
        return fields


@dataclass(frozen=True)
class Ratio:
    """A figure that a bar is for.

    Attributes:
        key: its key in `benchmarks.bars.BARS`.
        size: the size at which it was measured.
        value: the ratio itself.
    """

    key: str
    size: Mapping[str, int | str]
    value: float

    @property
    def met(self) -> bool | None:
        """Whether it meets its bar."""
        return BARS[self.key].met(self.value)

    def to_dict(self) -> dict[str, Any]:
        """All attributes with the bar of today, for JSON."""
        bar = BARS[self.key]
        return {**asdict(self), "says": bar.says, "limit": bar.limit, "at_least": bar.at_least, "met": self.met}


Finding = Row | Ratio | str
"""What a benchmark yields: rows, ratios, and notes that say what was left out and why."""


def document(findings: list[Finding], *, command: str, **conditions: Any) -> dict[str, Any]:
    """The JSON of a run.

    Args:
        findings: what the benchmarks yielded.
        command: the command of the run.
        conditions: checkpoint, dtype, seeds and the like.
    """
    return {
        "command": command,
        "commit": commit(RESULTS.parent),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": device(),
        **conditions,
        "rows": [finding.to_dict() for finding in findings if isinstance(finding, Row)],
        "ratios": [finding.to_dict() for finding in findings if isinstance(finding, Ratio)],
        "notes": [finding for finding in findings if isinstance(finding, str)],
    }


@functools.cache  # a run reports the commit it began with
def commit(folder: Path) -> str | None:
    """The commit that is checked out, with a + where tracked files differ from it; None outside of a repository."""
    describe = ["git", "describe", "--always", "--abbrev=9", "--exclude=*", "--dirty=+"]
    try:
        described = subprocess.run(describe, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def device() -> dict[str, Any]:
    """The device and the processor of this run."""
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
    named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
