"""Run every reader of jaxlin on hostile files.

    python -m benchmarks.fuzz --minutes 5                  # all readers in turn
    python -m benchmarks.fuzz --only gguf_load pt --inputs 2000 --seed 7
    python -m benchmarks.fuzz --repro pt 1234 --keep DIR   # one input again, with its traceback; its files in DIR

An input fails if anything but a `JaxlinError` is raised, if its message is not fit for a terminal, if it takes more
than ten seconds or memory out of proportion, if the process dies, or if a file elsewhere is opened or something is run.
Exit status 1 if any fails.
"""

import argparse
import itertools
import math
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from benchmarks.fuzz.campaign import Verdict, campaign, run
from benchmarks.fuzz.readers import all_readers


def main(argv: list[str] | None = None) -> int:
    """Run the readers, and print each failure."""
    readers = all_readers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(readers)
    parser.add_argument("--only", nargs="+", choices=readers, default=list(readers), metavar="READER", help=names)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="of each reader's first input")
    parser.add_argument("--inputs", type=float, default=math.inf, help="of all readers together")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--repro", nargs=2, metavar=("READER", "NUMBER"), help="one input again")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep its files here")
    args = parser.parse_args(argv)
    if args.repro:
        verdict = run(args.seed, args.repro[0], int(args.repro[1]), args.keep)
        print(f"{verdict.kind} {verdict.detail}")
        return int(verdict.failed)
    if math.isinf(args.inputs) and math.isinf(args.minutes):
        args.minutes = 5
    counts: Counter[tuple[str, str]] = Counter()
    failures: dict[str, list[Verdict]] = {}
    verdicts = campaign(args.seed, args.only, first=args.first, inputs=args.inputs, minutes=args.minutes)
    for verdict in tqdm(verdicts, unit="input", disable=None):
        counts[verdict.reader, verdict.kind] += 1
        if verdict.failed:
            failures.setdefault(f"{verdict.kind} {verdict.detail}", []).append(verdict)
    for name, each in itertools.groupby(sorted(counts.items()), key=lambda item: item[0][0]):
        print(f"{name:16}" + "".join(f"{kind} {number:<8}" for (_, kind), number in each))
    for detail, each in sorted(failures.items()):
        print(f"\n{detail}\n    {len(each)} times; --repro {each[0].reader} {each[0].number} --seed {args.seed}")
    print(f"\n{counts.total()} inputs, {sum(map(len, failures.values()))} failed, seed {args.seed}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
