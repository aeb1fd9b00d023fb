"""The command ``jaxlin``, also as ``python -m jaxlin``."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlin.common.printable import finite, json_text, printable

MODEL_HELP = "Hub id, directory or .gguf file. Default: the small model that ships with jaxlin."

Model = Annotated[str | None, typer.Option(help=MODEL_HELP)]
Rule = Annotated[
    Literal["gate", "up", "half"],
    typer.Option(help="Factor of a gated MLP, act(g)·u, that is frozen: act(g), u·act(g)/g, or half of each."),
]
Dtype = Annotated[Literal["float32", "float64"], typer.Option(help="Precision of the computation.")]
IgnoredKeys = Annotated[
    list[str] | None,
    typer.Option(help="Key of the config that jaxlin does not know, to be ignored. May be given more than once."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

app = typer.Typer(
    rich_markup_mode="markdown", add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)


def main() -> None:
    """Run the command; an error that the user can fix is printed as one message, without a traceback."""
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
def options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Exact local linear maps of language models."""
    if show_version:
        from importlib.metadata import version

        print(f"jaxlin {version('jaxlin')}")
        raise typer.Exit


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="Prompt whose next token is explained.")],
    model: Model = None,
    rule: Rule = "gate",
    dtype: Dtype = "float32",
    position: Annotated[
        int, typer.Option(help="Explain the prediction after this token; negative numbers count from the end.")
    ] = -1,
    target: Annotated[
        str | None,
        typer.Option(
            help="Word whose logit is explained; one token, with or without a space before it. "
            "Default: the likeliest next token."
        ),
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="Explain the logit of the target minus the logit of this word.")
    ] = None,
    top: Annotated[
        int,
        typer.Option(min=1, max=100, help="Number of next tokens, of singular values, and of words for each to show."),
    ] = 5,
    spectrum: Annotated[
        Literal["dense", "krylov", "none"],
        typer.Option(
            help="Find singular values from all rows of J (dense), from products with J, for large models and long "
            "prompts (krylov), or not at all."
        ),
    ] = "dense",
    bos: Annotated[
        bool | None, typer.Option(help="Begin the prompt with the BOS token. Default: as the tokenizer does.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Take the prompt as a user's message, in the model's chat template.")
    ] = False,
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write an interactive page, with layers, heads and neurons, to this file.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Number of devices to shard the model and the rows of J over.")
    ] = None,
    ignore_config_keys: IgnoredKeys = None,
) -> None:
    """Explain one prediction: what each token contributes to the logit, and what the map reads and writes.

    Once its attention patterns, norms and gates are frozen at their values for the prompt, the model is exactly linear
    in the prompt's embeddings x: its output after the final norm is f(x) = J x + b. The command prints what each token
    contributes to a logit through J, and the singular vectors of J in words.
    """
    _configure_jax(dtype, devices)
    import jaxlin
    from jaxlin.report import check_writable, write
    from jaxlin.report.build import explain as explain_prediction
    from jaxlin.report.terminal import show
    from jaxlin.tokenizer import require_tokenizer

    if html is not None:
        check_writable(html)
    loaded, tokenizer = jaxlin.load(
        model, linearize=True, rule=rule, dtype=dtype, mesh=devices, ignore_config_keys=ignore_config_keys or ()
    )
    prompt: str | list[int] = text
    if chat:
        messages = [{"role": "user", "content": text}]
        prompt = require_tokenizer(tokenizer, "A chat").chat(messages, add_generation_prompt=True)
    explanation = explain_prediction(
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
        write(explanation, html, name=model or "the small model of jaxlin")
    if as_json:
        print(json_text(finite(explanation.to_dict()), indent=2))
    else:
        console = Console(highlight=False)
        show(explanation, console)
        if html is not None:
            console.print(Text(f"page        {printable(str(html))}"), soft_wrap=True)


@app.command()
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
    _configure_jax(dtype)
    import jaxlin
    from jaxlin.report.paper import STEER, TEXT, check_output, reproduce

    text, steer = TEXT if text is None else text, STEER if steer is None else steer
    name = model or "the small model of jaxlin"
    check_output(out, model=name, text=text, steer=steer, dtype=dtype, rule=rule)
    loaded, tokenizer = jaxlin.load(
        model, linearize=True, rule=rule, dtype=dtype, ignore_config_keys=ignore_config_keys or ()
    )
    index = reproduce(loaded, tokenizer, text, out=out, name=name, steer=steer)
    Console(highlight=False).print(Text(f"figures     {printable(str(index))}"), soft_wrap=True)


@app.command()
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
    _configure_jax("float32")
    from jaxlin.report.check import check_model
    from jaxlin.report.check.terminal import show_end, show_facts, show_line

    name = "the small model of jaxlin" if model is None else model
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
        print(json_text(finite(result.to_dict()), indent=2))
    else:
        show_end(result, console)
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def models() -> None:
    """List the supported models."""
    from jaxlin.loading.registry import families

    table = Table("family file", "model_type in config.json", "GGUF architecture")
    for family in families():
        table.add_row(f"models/{family.name}.py", ", ".join(family.types), ", ".join(family.gguf))
    Console(highlight=False).print(table)


@app.command()
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
    _configure_jax(dtype)
    from jaxlin.common.devices import physical_memory
    from jaxlin.loading.plan import memory_plan
    from jaxlin.report.plan_table import show_plan

    available = physical_memory() if memory is None else int(memory * 1e9)
    estimate = memory_plan(
        model,
        tokens=tokens,
        dtype=dtype,
        memory=available,
        remat=remat,
        ignore_config_keys=ignore_config_keys or (),
    )
    if as_json:
        print(json_text(finite(estimate.to_dict()), indent=2))
        return
    show_plan(estimate, available, f"{model}, {tokens} tokens, {dtype}", Console(highlight=False))


def _configure_jax(dtype: str, devices: int | None = None) -> None:
    """Set JAX's precision and number of devices, and a cache for compiled programs in the user's cache folder."""
    import jax

    from jaxlin.common.devices import prefer_library_products

    prefer_library_products()
    if devices is not None:
        # Where there is only a CPU, it acts as that many devices.
        jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", dtype == "float64")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlin"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    # XLA logs a screenful for each program that it reads from the cache on a CPU; errors that matter are raised.
    jax.config.update("jax_logging_level", "CRITICAL")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


if __name__ == "__main__":
    main()
