"""Measure which config keys matter: ``python -m benchmarks.config_keys`` writes the table that `ConfigReader` reads.

With ``--odd N``, compare N oddly edited configs in jaxlin and transformers instead; the exit status says whether any
difference is silent.
"""

import argparse
import json
import logging
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch
import transformers

from benchmarks.config_keys.contexts import contexts
from benchmarks.config_keys.keys import known_keys, known_rope_keys
from benchmarks.config_keys.measure import Row, measure
from benchmarks.config_keys.odd import report
from benchmarks.config_keys.reference import Reference, model_class, parse

TABLE = ROOT / "jaxlin" / "checkpoint" / "config_keys.json"


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the rows of the types on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="MODEL_TYPE", help="whose rows are measured anew; all if absent")
    parser.add_argument("--odd", type=int, metavar="N", help="compare N odd configs instead")
    parser.add_argument("--seed", type=int, default=0, help="of the odd configs")
    parser.add_argument("--needless", action="store_true", help="print which odd configs are refused needlessly, too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    if args.odd is not None:
        logging.getLogger("jaxlin").setLevel(logging.ERROR)  # it says of each wrapper what is left out
        return int(report(args.odd, args.seed, args.types, needless=args.needless) > 0)
    todo = list(contexts())
    if unknown := set(args.types) - {each.config["model_type"] for each in todo}:
        parser.error(f"no variant of the tests is a {', '.join(sorted(unknown))}")
    rows: dict[str, Row] = {}
    classes: dict[str, str] = {}
    for context in todo:
        kind = context.config["model_type"]
        if args.types and kind not in args.types:
            continue
        start = time.perf_counter()
        try:
            reference = Reference(context.config)
        except Exception as error:  # some families refuse some ropes
            print(f"          {context.name}: left out, as transformers says {str(error)[:100]!r}")
            continue
        measure(reference, context.places, rows)
        classes[kind] = model_class(parse(context.config)).__name__.split("For")[0].removesuffix("LMHeadModel")
        print(f"{time.perf_counter() - start:6.1f} s  {context.name}", flush=True)
    TABLE.write_text(written(merged(rows, classes, fresh=not args.types)))
    return 0


def merged(rows: dict[str, Row], classes: dict[str, str], *, fresh: bool) -> dict[str, Any]:
    """The table with these rows. The keys of a kind of rope are the union over all families."""
    before = {"models": {}, "ropes": {}} if fresh or not TABLE.exists() else json.loads(TABLE.read_text())
    models, ropes = before["models"], before["ropes"]
    for name, row in rows.items():
        if name.startswith("rope."):
            kind = name.removeprefix("rope.")
            ropes[kind] = sorted(row.changes | set(ropes.get(kind, ())))
        else:
            stem = {"class": classes[name]} if name in classes else {}
            models[name] = {**stem, "changes": sorted(row.changes), "same": sorted_lists(row.same)}
    return {
        "transformers": transformers.__version__,
        "models": dict(sorted(models.items())),
        "ropes": dict(sorted(ropes.items())),
        "keys": list(known_keys()),
        "rope_keys": known_rope_keys(),
    }


def sorted_lists(same: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The lists that are not empty, by key."""
    return {key: values for key, values in sorted(same.items()) if values}


def written(value: Any, indent: int = 0) -> str:
    """JSON text whose lists fill lines of 120 columns."""
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value and indent < 3:
        rows = ",\n".join(f"{pad}{json.dumps(key)}: {written(each, indent + 1)}" for key, each in value.items())
        return "{\n" + rows + "\n" + " " * indent + "}" + ("" if indent else "\n")
    if isinstance(value, list) and len(line := json.dumps(value)) > 80:
        lines = textwrap.fill(line[1:-1], 118 - indent, break_long_words=False, break_on_hyphens=False)
        return "[\n" + textwrap.indent(lines, pad) + "\n" + " " * indent + "]"
    return json.dumps(value)


if __name__ == "__main__":
    sys.exit(main())
