"""Every variant against transformers: ``python -m benchmarks.parity`` writes PARITY.md.

One row a variant: a tiny random model of its architecture, every parameter drawn, written by transformers and loaded by
jaxlin. Logits are compared at every position, in float32 and in float64 with transformers' own float32 casts lifted.
Residuals are over all rows of J. Quantised variants are compared with the values that their own library decodes. A
figure beyond its bar is marked, and the exit status says so.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import gguf_files
import gguf_variants
import jax
import numpy as np
import oracle
import quantised_files
import tiny
import torch
import transformers
from tqdm import tqdm

import jaxlin
from benchmarks import conservation, heads
from jaxlin.nn.freeze_rules import RULES

FORMATS = {f"llama, {name}": form for name, form in quantised_files.FORMATS.items()}
PACKED = {f"GGUF, {name}": form for name, form in gguf_variants.PACKED.items()}
KNOWN = [*tiny.VARIANTS, *FORMATS, *PACKED]
"""The variants: those of the tests, then quantised safetensors, then GGUF files."""

BARS = {"logits float32": 2e-5, "logits float64": 1e-10, "float32": 3e-6, "float64": 1e-13}


class Row(NamedTuple):
    """The figures of one variant.

    Attributes:
        name: the name of the variant.
        logits: the largest difference of a logit, by dtype.
        residuals: of the map, by dtype and rule.
        bias: $|b| / |f|$ under rule ``gate``.
        seconds: the time that all of it took, transformers included.
    """

    name: str
    logits: dict[str, float]
    residuals: dict[tuple[str, str], float]
    bias: float
    seconds: float

    def cells(self) -> list[tuple[float, float]]:
        """Each figure with its bar, in the order of the columns."""
        logits = [(self.logits[dtype], BARS[f"logits {dtype}"]) for dtype in ("float32", "float64")]
        return logits + [(self.residuals[dtype, rule], BARS[dtype]) for rule in RULES for dtype in DTYPES]

    @property
    def within(self) -> bool:
        """Whether every figure is within its bar."""
        return all(figure <= bar for figure, bar in self.cells())

    def __str__(self) -> str:
        cells = [f"{figure:.1e}" if figure <= bar else f"**{figure:.1e}**" for figure, bar in self.cells()]
        return "| " + " | ".join([self.name, *cells, f"{self.bias:.2f}", f"{self.seconds:.1f}"]) + " |"


DTYPES = ("float32", "float64")
HEADER = (
    "| variant | logits f32 | logits f64 | "
    + " | ".join(f"{rule} {'f32' if dtype == 'float32' else 'f64'}" for rule in RULES for dtype in DTYPES)
    + " | \\|b\\|/\\|f\\| | s |"
)


def measure(name: str, folder: Path, values: Path, ids: list[int]) -> Row:
    """The row of a checkpoint in `folder`, whose weights are those of the plain one in `values`."""
    start = time.perf_counter()
    logits, residuals, bias = {}, {}, 0.0
    for dtype in DTYPES:
        expected = oracle.logits(values, ids, getattr(torch, dtype))
        model, _ = jaxlin.load(folder, linearize=True, dtype=dtype)
        x = model.embed(ids)
        ours = model.unembed(jax.jit(lambda model, x: model(x))(model, x))
        logits[dtype] = float(np.abs(ours - expected).max())
        for rule in RULES:
            lmap = jaxlin.local_map(model, x, rule=rule)
            residuals[dtype, rule] = lmap.residual_of(lmap.jacobian(progress=False))
            if rule == "gate":
                bias = float(np.linalg.norm(lmap.bias) / np.linalg.norm(lmap.output))
    return Row(name, logits, residuals, bias, time.perf_counter() - start)


def rows(names: Iterable[str]) -> Iterable[Row]:
    """The rows of the variants `names`."""
    for name in names:
        jax.clear_caches()  # compiled programs keep memory maps, of which a process may have only so many
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary)
            if name in tiny.VARIANTS:
                folder = tiny.build(tiny.VARIANTS[name], path)
                yield measure(name, folder, folder, tiny.ids_of(tiny.VARIANTS[name]))
            elif name in PACKED:
                arch, variant, kinds = PACKED[name]
                packed = path / "packed.gguf"
                values = gguf_files.write(packed, tiny.build(variant, path / "source"), arch, kinds)
                yield measure(name, packed, values, tiny.IDS)
            else:
                source = tiny.build(tiny.WIDE["llama, wide"], path / "source")
                folder = quantised_files.quantise(source, path / "packed", *FORMATS[name][:2])
                yield measure(name, folder, folder / "values", tiny.IDS)


def with_rows(page: str, measured: Sequence[Row]) -> str:
    """`page` with the rows of `measured` in it, in the order of `KNOWN`, and all other lines as they are."""
    lines = page.splitlines()
    start = lines.index(HEADER) + 2
    stop = next((i for i in range(start, len(lines)) if not lines[i].startswith("| ")), len(lines))
    table = {line.split(" | ")[0].removeprefix("| "): line for line in lines[start:stop]}
    table |= {row.name: str(row) for row in measured}
    return "\n".join([*lines[:start], *(table[name] for name in KNOWN if name in table), *lines[stop:]]) + "\n"


def main() -> int:
    """Measure, print and write; 1 if a figure is beyond its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "variants", nargs="*", help="the variants to measure, whose rows alone are replaced; all if absent"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "PARITY.md")
    parser.add_argument("--heads", action="store_true", help="only print the tables of heads and names")
    parser.add_argument("--circuits", action="store_true", help="only replace the table of circuits")
    args = parser.parse_args()
    if unknown := sorted(set(args.variants) - set(KNOWN)):
        parser.error(f"expected variants of {', '.join(KNOWN)}; found {', '.join(unknown)}")
    jax.config.update("jax_enable_x64", True)
    transformers.utils.logging.disable_progress_bar()
    if args.heads:
        lines = list(heads.tables())
        print(*lines, sep="\n")
        return int(any("**" in line for line in lines))
    if args.circuits and args.variants:
        args.out.write_text(conservation.with_rows(args.out.read_text(), args.variants))
        return int("**" in args.out.read_text())
    if args.circuits:
        text = "\n".join(conservation.table()) + "\n"
        page = args.out.read_text().split(conservation.HEADING)[0]
        args.out.write_text(f"{page.rstrip()}\n\n{text}")
        return int("**" in text)
    names = args.variants or KNOWN
    measured = []
    for row in tqdm(rows(names), total=len(names), unit="variant"):
        measured.append(row)
        tqdm.write(str(row))
    lines = [
        "# Parity",
        "",
        f"Written by `python -m benchmarks.parity`, with jax {jax.__version__}, "
        f"torch {torch.__version__.split('+')[0]} and transformers {transformers.__version__} on a CPU.",
        "",
        *(line.strip() for line in (__doc__ or "").split("\n")[2:-1]),
        "",
        "Bars: logits 2e-5 and 1e-10, residuals 3e-6 and 1e-13, in float32 and float64.",
        "",
        HEADER,
        "|" + "---|" * (HEADER.count(" | ") + 1),
    ]
    if args.variants and args.out.exists():
        page = with_rows(args.out.read_text(), measured)
    else:
        lines += [*map(str, measured), *([] if args.variants else ["", *heads.tables(), "", *conservation.table()])]
        page = "\n".join(lines) + "\n"
    args.out.write_text(page)
    return 0 if all(row.within for row in measured) and "**" not in page else 1


if __name__ == "__main__":
    sys.exit(main())
