"""``jaxlin paper``: the paper's figures and tables for any model."""

from pathlib import Path
from typing import Annotated

import typer

from jaxlin.report.commands.options import SMALL_MODEL, Dtype, IgnoredKeys, Model, Rule


def paper(
    out: Annotated[Path, typer.Option(help="Folder to write to. An interrupted run goes on if its folder is given.")],
    model: Model = None,
    text: Annotated[str | None, typer.Option(help="Prompt. Default: the paper's.")] = None,
    steer: Annotated[
        str | None, typer.Option(help="Phrase whose map steers the texts of table 2. Default: the paper's.")
    ] = None,
    rule: Rule = "gate",
    dtype: Dtype = "float32",
    ignore_config_keys: IgnoredKeys = None,
) -> None:
    """Reproduce the paper's figures and tables for a model.

    The paper is arXiv 2505.24293. Each figure and table comes with its numbers as JSON. Needs matplotlib.
    """
    from jaxlin.report.commands.setup import configure_jax, load_model

    configure_jax(dtype)
    from rich.console import Console
    from rich.text import Text

    from jaxlin.common.printable import printable
    from jaxlin.report.paper import STEER, TEXT, check_output, reproduce

    text, steer = TEXT if text is None else text, STEER if steer is None else steer
    name = model or SMALL_MODEL
    check_output(out, model=name, text=text, steer=steer, dtype=dtype, rule=rule)
    loaded, tokenizer = load_model(model, ignore_config_keys, linearize=True, rule=rule, dtype=dtype)
    index = reproduce(loaded, tokenizer, text, out=out, name=name, steer=steer)
    Console(highlight=False).print(Text(f"figures     {printable(str(index))}"), soft_wrap=True)
