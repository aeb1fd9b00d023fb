"""Load time and peak memory, each in a process of its own, against the bytes of the loaded weights.

Each load ends when every weight has been read: transformers maps a file and reads a weight when it is first used, while
jaxlin has checked all of them. Pages of mapped files count as memory. The floor is a copy of the file into the weights.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timing
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio

PEAK = r"""
import json, re, sys, time
peak = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
path = sys.argv[1]
"""
"""Linux alone reports the peak in this file."""

OURS = r"""
import jax, jax.numpy as jnp, jaxlin
jax.jit(lambda a: a @ a)(jnp.ones((64, 64))).block_until_ready()
before, start = peak(), time.perf_counter()
model, _ = jaxlin.load(path)
jax.block_until_ready(jax.tree.leaves(model))
took = time.perf_counter() - start
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
"""

TRANSFORMERS = r"""
import os, torch, transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
transformers.utils.logging.disable_progress_bar()
torch.ones(64, 64) @ torch.ones(64, 64)
folder, name = os.path.split(path)
options = {"gguf_file": name} if name.endswith(".gguf") else {}
before, start = peak(), time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(folder if options else path, dtype=torch.float32, **options)
for p in model.parameters():
    p.sum()
took = time.perf_counter() - start
weights = sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())
"""

PRINT = 'print(json.dumps({"seconds": took, "peak": peak() - before, "weights": weights}))'

LARGE = 64 * 2**20
"""The least bytes of weights that make up most of the memory that loading takes."""

LIBRARIES = {"jaxlin": OURS, "transformers": TRANSFORMERS}


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure both libraries for each format of the checkpoint."""
    checkpoint = setting.checkpoint or ""
    if not Path("/proc/self/status").exists():
        yield "load: left out; peak memory is read from /proc"
        return
    formats = {"safetensors, float32": setting.exported, "GGUF": checkpoint if checkpoint.endswith(".gguf") else None}
    for name, path in formats.items():
        if path is None:
            yield f"load: no {name} of this checkpoint"
        else:
            yield from measure_format(setting, name, str(Path(path).resolve()))


def measure_format(setting: Setting, form: str, path: str) -> Iterator[Finding]:
    """Measure both libraries, in turn, on the checkpoint at `path`."""
    loads: dict[str, list[dict[str, float]]] = {name: [] for name in LIBRARIES}
    size: dict[str, int | str] = {"format": form}
    for _ in range(1 if setting.quick else setting.runs):
        for name in LIBRARIES:
            setting.say(f"{name} loads {form}")
            try:
                loads[name].append(load(name, path))
            except subprocess.CalledProcessError as error:
                reason = (re.findall(r"^\S*(?:Error|Exception)\b.*", error.stderr, re.M) or ["no message"])[-1]
                yield f"load: {name} did not load {form}: {reason[:200]}"
    rows = {}
    _, floor_of = setting.timed({}, 1)
    stored = sum(file.stat().st_size for file in [Path(path), *Path(path).glob("*.safetensors")] if file.is_file())
    for name, runs in loads.items():
        if not runs:
            continue
        peak, weights = max(int(run["peak"]) for run in runs), runs[0]["weights"]
        taken = timing.Timing([run["seconds"] for run in runs], peak)
        figures = {"weights": weights, "peak over weights": peak / weights}
        floor = floor_of(0, stored + weights)
        rows[name] = Row.of("load", name, size, taken, ours=name == "jaxlin", floor=floor, figures=figures)
        yield rows[name]
    if "jaxlin" in rows and rows["jaxlin"].figures["weights"] >= LARGE:
        yield Ratio("load, memory", size, rows["jaxlin"].figures["peak over weights"])
    if len(rows) == 2:
        theirs, ours = rows["transformers"], rows["jaxlin"]
        yield Ratio("load, over transformers", size, ratio(theirs, ours))
        if ours.resident:
            yield Ratio("load, memory over transformers", size, (theirs.resident or 0) / ours.resident)


def load(library: str, path: str) -> dict[str, float]:
    """Load once in a fresh process: the seconds, the growth of its memory at its peak, and the bytes of the weights."""
    program = PEAK + LIBRARIES[library] + PRINT
    ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])
