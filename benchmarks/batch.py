"""`jaxlin.attribute_batch` of prompts of unequal lengths against a call of `jaxlin.attribute` for each.

Every run is in a fresh process, because what a batch saves is compilation: a process compiles a program for each new
length. The time begins when the model is loaded, and ends when all contributions are there.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import jaxlin
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from benchmarks.timing import Timing

PROMPTS, SHORTEST, LONGEST = 12, 5, 40
"""The number of prompts, and the tokens of the shortest and of the longest, between which all lengths are unlike."""

EQUAL = 1e-5
"""The largest difference between the two ways, of the largest contribution; beyond it nothing is reported."""

PROGRAM = r"""
import json, sys, time
import numpy as np
import jaxlin
way, checkpoint, prompts, target, out = sys.argv[1], *map(json.loads, sys.argv[2:5]), sys.argv[5]
model, tokenizer = jaxlin.load(checkpoint)
start = time.perf_counter()
if way == "one call":
    parts = jaxlin.attribute_batch(model, prompts, target, progress=False)
else:
    parts = [jaxlin.attribute(model, model.embed(ids), target) for ids in prompts]
took = time.perf_counter() - start
arrays = {f"{name}{i}": getattr(each, name) for i, each in enumerate(parts) for name in ("heads", "attn", "mlp")}
ends = {f"tokens{i}": np.append(each.tokens, each.bias) for i, each in enumerate(parts)}
np.savez(out, took=took, **arrays, **ends)
"""

ONE, EACH = "one call", "a call for each"


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure both ways, in turn.

    Raises:
        JaxlinError: they give other contributions.
    """
    lengths = [round(length) for length in np.linspace(SHORTEST, LONGEST, PROMPTS)]
    text = setting.ids(sum(lengths))
    starts = np.cumsum([0, *lengths[:-1]])
    prompts = [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    target = int(setting.model.unembed(setting.model(setting.model.embed(prompts[0]))[-1]).argmax())
    seconds: dict[str, list[float]] = {ONE: [], EACH: []}
    gap = 0.0
    for turn in range(setting.runs):
        arrays = {}
        for way in (ONE, EACH) if turn % 2 == 0 else (EACH, ONE):
            setting.say(f"{PROMPTS} prompts, {way}")
            took, arrays[way] = in_a_fresh_process(way, setting.checkpoint, prompts, target)
            seconds[way].append(took)
        gap = max(gap, difference(arrays[ONE], arrays[EACH]))
    if not gap <= EQUAL:
        raise jaxlin.JaxlinError(f"{ONE}: expected the contributions of {EACH} within {EQUAL:g}; found {gap:g}.")
    size: dict[str, int | str] = {"tokens": f"{PROMPTS} prompts of {SHORTEST} to {LONGEST}"}
    rows = {way: Row.of("batch", way, size, Timing(seconds[way], None), figures={"difference": gap}) for way in seconds}
    yield from rows.values()
    yield Ratio("batch, over each", size, ratio(rows[ONE], rows[EACH]))


def in_a_fresh_process(
    way: str, checkpoint: str | None, prompts: list[list[int]], target: int
) -> tuple[float, dict[str, np.ndarray]]:
    """The seconds of one way, and its contributions."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "parts.npz")
        arguments = [json.dumps(each) for each in (checkpoint, prompts, target)]
        subprocess.run([sys.executable, "-c", PROGRAM, way, *arguments, str(out)], check=True)
        with np.load(out) as arrays:
            parts = dict(arrays)
    return float(parts.pop("took")), parts


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest difference, each of the largest contribution of its kind and prompt."""
    return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs)
