"""The command ``jaxlin``, also as ``python -m jaxlin``."""

import sys
from typing import Annotated

import typer

from jaxlin.report import commands

app = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False, no_args_is_help=True)

PANELS = {
    "One prompt": (commands.explain, commands.compare, commands.lens, commands.generate, commands.steer),
    "A model": (commands.check, commands.plan, commands.models, commands.paper),
}
"""The commands, by the box that lists them in the help."""

for panel, group in PANELS.items():
    for command in group:
        app.command(rich_help_panel=panel)(command)


def main() -> None:
    """Run the command; an error that the user can fix is printed as one message, without a traceback."""
    from jaxlin.common.errors import JaxlinError
    from jaxlin.common.printable import printable

    try:
        app()
    except JaxlinError as error:
        _print_error(f"jaxlin: {error}", "red")
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        for note in getattr(interruption, "__notes__", ()):
            _print_error(f"jaxlin: {printable(note)}")
        sys.exit(130)


def _print_error(text: str, style: str = "") -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(text, style=style), soft_wrap=True)


@app.callback(invoke_without_command=True)
def options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """See what a language model's prediction is made of: exact sums over its tokens, layers and heads.

    At one prompt, a language model is an exact linear map of its embeddings. jaxlin computes that map, and explains,
    compares and steers predictions by it. `jaxlin explain "Once upon a time"` is a first example; it needs no download.
    """
    if show_version:
        from importlib.metadata import version

        print(f"jaxlin {version('jaxlin')}")
        raise typer.Exit


if __name__ == "__main__":
    main()
