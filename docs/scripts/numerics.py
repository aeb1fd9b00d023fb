"""Write the tables of docs/numerics.md from PARITY.md and from what the benchmarks measured on GPUs.

python docs/scripts/numerics.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "numerics.md"
PACKED = ("nf4", "fp4", "int8", "fp8", "compressed-tensors", "gptq", "awq", "pack-quantized", "GGUF")
"""What the names of the variants with packed weights contain."""

PARITY_COLUMNS = ("logits f32", "logits f64", "gate f32", "gate f64")
GPUS = {"nvidia-h100": "H100", "nvidia-h200": "H200"}


def parity() -> str:
    """The largest figure of each column of PARITY.md, of plain and of packed weights."""
    table = (ROOT / "PARITY.md").read_text().split("\n\n| variant")[1].split("\n\n")[0].splitlines()
    head, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in ("| variant" + table[0], *table[2:])
    )
    places = [head.index(column) for column in PARITY_COLUMNS]
    lines = []
    for label, packed in (("weights of 16 and 32 bits", False), ("packed weights", True)):
        members = [row for row in rows if any(name in row[0] for name in PACKED) == packed]
        worst = (f"{max(float(row[place]) for row in members):.1e}" for place in places)
        lines.append(f"| {label} | {len(members)} | {' | '.join(worst)} |")
    heads = ("", "variants", "logits, float32", "logits, float64", "residual, float32", "residual, float64")
    return f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n" + "\n".join(lines)


def precision() -> str:
    """Residual and seconds of the dense map in each precision, on each GPU."""
    lines: dict[str, list[str]] = {}
    for name in GPUS:
        for row in json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]:
            if row["group"] == "precision":
                lines.setdefault(row["name"], []).append(f"{row['figures']['residual']:.1e} | {row['median']:.2f} s")
    heads = " | ".join(f"residual, {gpu} | time, {gpu}" for gpu in GPUS.values())
    body = "\n".join(f"| `{name}` | {' | '.join(cells)} |" for name, cells in lines.items())
    return f"| precision | {heads} |\n|---{'|---' * 2 * len(GPUS)}|\n{body}"


TABLES = {"parity": parity, "precision": precision}


def written(page: str) -> str:
    """`page` with its tables as they are to be now."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{table()}\n\n{end}{rest.split(end)[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
