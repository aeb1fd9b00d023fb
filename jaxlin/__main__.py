"""The command ``jaxlin``, also as ``python -m jaxlin``: what a person sees in a terminal."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import finite, json_text, printable

Model = Annotated[
    str | None,
    typer.Option(help="A hub id, a directory or a .gguf file; the small model of the package if absent."),
]
Rule = Annotated[
    Literal["gate", "up", "half"],
    typer.Option(help="What is held of act(g)·u in a gated MLP: act(g), u·act(g)/g, or half of each."),
]
Dtype = Annotated[Literal["float32", "float64"], typer.Option(help="What is computed in.")]
Ignored = Annotated[
    list[str] | None,
    typer.Option(help="A key of the config to read as if it were absent, which jaxlin refuses; give it once a key."),
]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def main() -> None:
    """Run the command; an error that the user can mend is one message, not a traceback."""
    from jaxlin.common.errors import JaxlinError

    try:
        app()
    except JaxlinError as error:
        Console(stderr=True).print(Text(f"jaxlin: {error}", style="red"), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        for note in getattr(interruption, "__notes__", ()):
            Console(stderr=True).print(Text(f"jaxlin: {printable(note)}"), soft_wrap=True)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def options(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Exact local linear maps of language models."""
    if show_version:
        print(f"jaxlin {version('jaxlin')}")
        raise typer.Exit


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="The prompt.")],
    model: Model = None,
    rule: Rule = "gate",
    dtype: Dtype = "float32",
    position: Annotated[int, typer.Option(help="The token after which the prediction is read.")] = -1,
    target: Annotated[
        str | None,
        typer.Option(
            help="The word whose logit is attributed: one token, as it is or after a space; likeliest if absent."
        ),
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="Another such word: the difference of the two logits is attributed.")
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, max=100, help="How many next words, singular values and words of each to show.")
    ] = 5,
    spectrum: Annotated[
        Literal["dense", "krylov", "none"],
        typer.Option(
            help="From all rows of J, with its ranks; by products with it, for large models and long prompts; or not."
        ),
    ] = "dense",
    bos: Annotated[
        bool | None,
        typer.Option(help="Whether the prompt begins with BOS; what the tokenizer does by itself if absent."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Take the prompt as what a user says, in the model's chat template.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with all of it to this file.")] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, max=4096, help="How many devices to spread the model and its rows over.")
    ] = None,
    ignore_config_keys: Ignored = None,
) -> None:
    """Say what the exact local linear map of one prompt says."""
    _configure_jax(dtype, devices)
    import jaxlin
    from jaxlin.report import check_writable, write
    from jaxlin.report.build import explain as explained
    from jaxlin.report.terminal import show
    from jaxlin.tokenizer import required

    if html is not None:
        check_writable(html)
    loaded, tokenizer = jaxlin.load(
        model, linearize=True, rule=rule, dtype=dtype, mesh=devices, ignore_config_keys=ignore_config_keys or ()
    )
    prompt: str | list[int] = text
    if chat:
        messages = [{"role": "user", "content": text}]
        prompt = required(tokenizer, "A chat").chat(messages, add_generation_prompt=True)
    found = explained(
        loaded,
        tokenizer,
        prompt,
        position=position,
        target=target,
        over=over,
        top=top,
        spectrum=spectrum,
        prepend_bos=bos,
        with_detail=html is not None,
    )
    if html is not None:
        write(found, html, name=model or "the small model of jaxlin")
    if as_json:
        print(json_text(finite(found.to_dict()), indent=2))
    else:
        console = Console(highlight=False)
        show(found, console)
        if html is not None:
            console.print(Text(f"page      {printable(str(html))}"), soft_wrap=True)


@app.command()
def paper(
    out: Annotated[Path, typer.Option(help="The folder to write to; of an interrupted run, to go on.")],
    model: Model = None,
    text: Annotated[str | None, typer.Option(help="The prompt; the paper's if absent.")] = None,
    steer: Annotated[str | None, typer.Option(help="The phrase to steer by; the paper's if absent.")] = None,
    rule: Rule = "gate",
    dtype: Dtype = "float32",
    ignore_config_keys: Ignored = None,
) -> None:
    """Make the figures and tables of the paper for a model, with every number in JSON. It needs matplotlib."""
    _configure_jax(dtype)
    import jaxlin
    from jaxlin.report.paper import STEER, TEXT, check_output, reproduce

    text, steer = TEXT if text is None else text, STEER if steer is None else steer
    name = model or "the small model of jaxlin"
    check_output(out, model=name, text=text, steer=steer, dtype=dtype, rule=rule)
    loaded, tokenizer = jaxlin.load(
        model, linearize=True, rule=rule, dtype=dtype, ignore_config_keys=ignore_config_keys or ()
    )
    written = reproduce(loaded, tokenizer, text, out=out, name=name, steer=steer)
    Console(highlight=False).print(Text(f"figures   {printable(str(written))}"), soft_wrap=True)


@app.command()
def check(
    model: Annotated[
        str | None,
        typer.Argument(help="A hub id, a directory or a .gguf file; the small model of the package if absent."),
    ] = None,
    against: Annotated[
        Literal["transformers"] | None, typer.Option(help="Compare logits with those of the installed transformers.")
    ] = None,
    ignore_config_keys: Ignored = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is and whether its numbers hold: a pass or a fail a line, exit status 1 on a fail."""
    _configure_jax("float32")
    from jaxlin.report.check import check_model
    from jaxlin.report.check.terminal import show_end, show_facts, show_line

    name = "the small model of jaxlin" if model is None else model
    console = Console(highlight=False, stderr=as_json)
    if not as_json:
        console.print(Text(printable(name), style="bold"), soft_wrap=True)
    with console.status("loading") as status:

        def on_facts(facts: dict[str, str]) -> None:
            status.update("checking: the first lines take longest, as programs are compiled")
            if not as_json:
                show_facts(facts, console)

        def on_line(line: Any) -> None:
            status.update(f"checking: {line.name} is done")
            if not as_json:
                show_line(line, console)

        ignored = ignore_config_keys or ()
        result = check_model(model, against=against, ignore_config_keys=ignored, on_facts=on_facts, on_line=on_line)
    if as_json:
        print(json_text(finite(result.to_dict()), indent=2))
    else:
        show_end(result, console)
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def models() -> None:
    """Say which models are supported."""
    from jaxlin.loading.registry import families

    table = Table("family file", "model_type in config.json", "GGUF architecture")
    for family in families():
        table.add_row(f"models/{family.name}.py", ", ".join(family.types), ", ".join(family.gguf))
    Console(highlight=False).print(table)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A hub id, a directory or a .gguf file; no weights are read.")],
    tokens: Annotated[int, typer.Option(min=1, help="The length of the prompt.")] = 8,
    dtype: Dtype = "float32",
    memory: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="GB there are; those of the present device if absent.")
    ] = None,
    remat: Annotated[bool, typer.Option(help="Recompute what is held instead of keeping it.")] = False,
    ignore_config_keys: Ignored = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a model and its map will take in memory, before anything is read."""
    _configure_jax(dtype)
    from jaxlin.common.devices import physical_memory
    from jaxlin.loading.plan import memory_plan

    there = physical_memory() if memory is None else int(memory * 1e9)
    found = memory_plan(
        model,
        tokens=tokens,
        dtype=dtype,
        memory=there,
        remat=remat,
        ignore_config_keys=ignore_config_keys or (),
    )
    if as_json:
        print(json_text(finite(found.to_dict()), indent=2))
        return
    console = Console(highlight=False)
    said = f"{printable(model)}: {found.parameters / 1e9:.2f} G parameters, {tokens} tokens, {dtype}"
    console.print(Text(said, style="italic"), soft_wrap=True)
    table = Table("", "GB")
    for name, size in (
        ("weights, as stored", found.weights),
        ("frozen factors", found.frozen),
        ("forward pass", found.forward),
        (f"a block of {found.block} rows", found.rows),
        ("the dense J", found.jacobian),
        ("peak, rows alone", found.operator),
        ("peak, J in memory", found.peak),
        ("there is", there),
    ):
        table.add_row(name, f"{size / 1e9:.3f}")
    console.print(table)
    if found.peak > there:
        hint = "The dense J does not fit beside the model: take products, or write it with jacobian(out=FILE)."
        console.print(hint, soft_wrap=True)


def _configure_jax(dtype: str, devices: int | None = None) -> None:
    """64-bit mode if asked for, and compiled programs kept in the user's cache folder for the next call."""
    import jax

    from jaxlin.common.devices import prefer_library_products

    prefer_library_products()
    if devices is not None:
        # Where there is only a CPU, it is as many devices as are asked for.
        jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", dtype == "float64")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlin"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    # XLA logs a screenful for each program it reads from the cache on a CPU; what matters is raised.
    jax.config.update("jax_logging_level", "CRITICAL")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


if __name__ == "__main__":
    main()
