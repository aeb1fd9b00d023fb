"""A memory plan in a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import printable
from jaxlin.loading.plan import MemoryPlan


def show_plan(plan: MemoryPlan, available: int, heading: str, console: Console) -> None:
    """Print what a model and its map take in memory, beside the bytes that are available."""
    text = f"{printable(heading)}: {plan.parameters:,} parameters"
    console.print(Text(text, style="italic"), soft_wrap=True)
    table = Table("memory", "GB")
    for name, size in (
        ("weights, as stored", plan.weights),
        ("frozen factors", plan.frozen),
        ("forward pass", plan.forward),
        (f"a block of {plan.block} rows of J", plan.rows),
        ("dense J", plan.jacobian),
        ("compiled programs, about", plan.programs),
        ("peak, of an attribution", plan.attribution),
        ("peak, without a dense J", plan.operator),
        ("peak, with a dense J", plan.peak),
        ("available", available),
    ):
        table.add_row(name, f"{size / 1e9:.3f}")
    console.print(table)
    if plan.peak > available:
        console.print(
            "The dense J does not fit in memory beside the model. Use products with it (lmap @ v, lmap.T @ u, "
            "lmap.svd), or write it to a file: lmap.jacobian(out=FILE).",
            soft_wrap=True,
        )
