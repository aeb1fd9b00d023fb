"""``jaxlin plan``: how much memory a model and its map take."""

from typing import Annotated

import typer

from jaxlin.report.commands.options import Dtype, IgnoredKeys, Json


def plan(
    model: Annotated[str, typer.Argument(help="Hub id, directory or .gguf file.")],
    tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt, in tokens.")] = 8,
    dtype: Dtype = "float32",
    memory: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Available memory in GB. Default: that of the first device.")
    ] = None,
    remat: Annotated[
        bool, typer.Option(help="Recompute the frozen factors in every pass instead of storing them.")
    ] = False,
    ignore_config_keys: IgnoredKeys = None,
    as_json: Json = False,
) -> None:
    """Estimate how much memory a model and its map take, without reading weights."""
    from jaxlin.report.commands.output import print_json
    from jaxlin.report.commands.setup import configure_jax

    configure_jax(dtype)
    from rich.console import Console

    from jaxlin.common.devices import physical_memory
    from jaxlin.common.progress import stage
    from jaxlin.loading.plan import memory_plan
    from jaxlin.report.plan_table import show_plan

    available = physical_memory() if memory is None else int(memory * 1e9)
    ignored = ignore_config_keys or ()
    with stage("compiling the pass that records, to know its memory"):
        estimate = memory_plan(
            model, tokens=tokens, dtype=dtype, memory=available, remat=remat, ignore_config_keys=ignored
        )
    if as_json:
        print_json(estimate.to_dict())
    else:
        show_plan(estimate, available, f"{model}, {tokens} tokens, {dtype}", Console(highlight=False))
