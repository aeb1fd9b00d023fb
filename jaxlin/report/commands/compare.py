"""``jaxlin compare``: the same logit after two prompts."""

from typing import Annotated

import typer

from jaxlin.report.commands.options import (
    SMALL_MODEL,
    Bos,
    Chat,
    Dtype,
    Html,
    IgnoredKeys,
    Json,
    Model,
    Plot,
    Rule,
)


def compare(
    first: Annotated[str, typer.Argument(help="Prompt A.")],
    second: Annotated[str, typer.Argument(help="Prompt B.")],
    model: Model = None,
    rule: Rule = "gate",
    dtype: Dtype = "float32",
    target: Annotated[
        str | None,
        typer.Option(help="Word whose logit is compared, one token. Default: the likeliest next token after A."),
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="Compare the logit of the target minus the logit of this word.")
    ] = None,
    bos: Bos = None,
    chat: Chat = False,
    as_json: Json = False,
    html: Html = None,
    plot: Plot = None,
    ignore_config_keys: IgnoredKeys = None,
) -> None:
    """Compare two prompts: what each token of either contributes to the same logit.

    Both sums are exact. Tokens that both prompts have stand side by side, and so do those that replace one another;
    below them are the heads whose contributions at the last token differ most.
    """
    from jaxlin.report.commands.output import check_files, name_files, print_json
    from jaxlin.report.commands.setup import configure_jax, encode, load_model

    configure_jax(dtype)
    from rich.console import Console

    from jaxlin.common.progress import stage
    from jaxlin.plots import save_plot
    from jaxlin.report.comparison import compare as compare_prompts
    from jaxlin.report.comparison_table import show_comparison
    from jaxlin.report.result_page import write_result

    check_files(html, plot)
    loaded, tokenizer = load_model(model, ignore_config_keys, rule=rule, dtype=dtype)
    ids = [encode(tokenizer, text, bos=bos, chat=chat) for text in (first, second)]
    with stage("taking both apart"):
        comparison = compare_prompts(loaded, tokenizer, ids[0], ids[1], target=target, over=over)
    if html is not None:
        write_result([comparison], html, name=model or SMALL_MODEL)
    if plot is not None:
        save_plot(comparison.plot, plot)
    if as_json:
        print_json(comparison.to_dict())
    else:
        console = Console(highlight=False)
        show_comparison(comparison, console)
        name_files(console, html, plot)
