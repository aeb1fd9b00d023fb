"""``jaxlin check``: what is in a checkpoint, and whether its numbers are right."""

from typing import Annotated, Any, Literal

import typer

from jaxlin.report.commands.options import MODEL_HELP, SMALL_MODEL, IgnoredKeys, Json


def check(
    model: Annotated[
        str | None,
        typer.Argument(help=MODEL_HELP),
    ] = None,
    against: Annotated[
        Literal["transformers"] | None,
        typer.Option(help="Also compare the logits with those of the installed transformers."),
    ] = None,
    ignore_config_keys: IgnoredKeys = None,
    as_json: Json = False,
) -> None:
    """Check a checkpoint: what is in it, and whether its tokenizer, logits and maps are right.

    Each check is a line that says pass or FAIL; the exit status is 1 if any fails.
    """
    from jaxlin.report.commands.output import print_json
    from jaxlin.report.commands.setup import configure_jax

    configure_jax("float32")
    from rich.console import Console
    from rich.text import Text

    from jaxlin.common.printable import printable
    from jaxlin.report.check import check_model
    from jaxlin.report.check.terminal import show_end, show_facts, show_line

    name = SMALL_MODEL if model is None else model
    console = Console(highlight=False, stderr=as_json)
    if not as_json:
        console.print(Text(printable(name), style="bold"), soft_wrap=True)
    with console.status("loading") as status:

        def on_facts(facts: dict[str, str]) -> None:
            status.update("checking: the first checks take longest, because programs are compiled")
            if not as_json:
                show_facts(facts, console)

        def on_line(line: Any) -> None:
            status.update(f"checking: {line.name} is done")
            if not as_json:
                show_line(line, console)

        ignored = ignore_config_keys or ()
        result = check_model(model, against=against, ignore_config_keys=ignored, on_facts=on_facts, on_line=on_line)
    if as_json:
        print_json(result.to_dict())
    else:
        show_end(result, console)
    if not result.passed:
        raise typer.Exit(1)
