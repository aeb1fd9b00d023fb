"""Write the table of docs/checkpoints.md: what checkpoints, their maps and attributions take in memory.

    python docs/scripts/checkpoints.py [HUB_ID ...]

Sizes are those of `jaxlin.memory_plan` on a CPU, from the config.json of each checkpoint in checkpoints.json beside
this file; no weights are read. With hub ids only those rows are computed again.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jaxlin.loading import memory_plan

HERE = Path(__file__).parent
PAGE = HERE.parent / "checkpoints.md"
CONFIGS: dict[str, dict[str, Any]] = json.loads((HERE / "checkpoints.json").read_text())
"""The config.json of each checkpoint, without the name and the version that wrote it."""

CARDS = (16, 24, 80)
"""Memory of the devices that are asked about, in GB."""

MAP_TOKENS, ATTRIBUTION_TOKENS = 8, 2048
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
NO_BREAK = "\u00a0"
"""A space at which a line of a table does not end."""

HEADER = (
    "| checkpoint | `model_type` | parameters | weights | J of 8 tokens | J fits in | "
    "attribution of 2,048 tokens | attribution fits in |\n|---|---|---|---|---|---|---|---|\n"
)


def row(name: str) -> str:
    """One line of the table."""
    config = CONFIGS[name]
    dense = memory_plan(config, tokens=MAP_TOKENS)
    # An attribution is one row of the map with the factors of one block at a time.
    attribution = memory_plan(config, tokens=ATTRIBUTION_TOKENS, block=1, remat=True)
    # Programs are compiled in the memory of the machine, and not in that of the device.
    on_device, attributing = dense.peak - dense.programs, attribution.attribution - attribution.attribution_programs
    cells = (
        f"`{name}`",
        f"`{config['model_type']}`",
        f"{dense.parameters / 1e9:.2f} G",
        _gb(dense.weights),
        _gb(on_device),
        _cards(on_device),
        _gb(attributing),
        _cards(attributing),
    )
    return f"| {' | '.join(cells)} |"


def _gb(size: int) -> str:
    return f"{size / 1e9:.{1 if size >= 1e9 else 2}f}{NO_BREAK}GB"


def _cards(size: int) -> str:
    """The devices that are large enough, or a dash."""
    return f",{NO_BREAK}".join(str(card) for card in CARDS if size <= card * 1e9) or "–"


def rows_of(page: str) -> dict[str, str]:
    """The lines that a page has now, by the name of the checkpoint."""
    lines = page.split(BEGIN)[1].split(END)[0].splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def main() -> None:
    """Write the lines asked for, and keep the others."""
    page = PAGE.read_text()
    present, names = rows_of(page), sys.argv[1:] or list(CONFIGS)
    for name in names:
        present[name] = row(name)
        print(present[name], flush=True)
    table = HEADER + "\n".join(present[name] for name in CONFIGS if name in present)
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


if __name__ == "__main__":
    main()
