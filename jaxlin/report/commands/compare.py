"""``jaxlin compare``: the same logit after two prompts."""

import functools
from typing import Annotated

import typer

from jaxlin.report.commands import options


def compare(
    first: Annotated[str, typer.Argument(help="Prompt A.")],
    second: Annotated[str, typer.Argument(help="Prompt B.")],
    model: options.Model = None,
    rule: options.Rule = "gate",
    dtype: options.Dtype = "float32",
    target: Annotated[
        str | None,
        typer.Option(help="Word whose logit is compared, one token. Default: the likeliest next token after A."),
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="Compare the logit of the target minus the logit of this word.")
    ] = None,
    bos: options.Bos = None,
    chat: options.Chat = False,
    as_json: options.Json = False,
    html: options.Html = None,
    plot: options.Plot = None,
    ignore_config_keys: options.IgnoredKeys = None,
) -> None:
    """Compare two prompts: what each token of either contributes to the same logit.

    Both sums are exact. Tokens that both prompts have stand side by side, and so do those that replace one another;
    below them are the heads whose contributions at the last token differ most.
    """
    from jaxlin.report.commands.output import check_files, give
    from jaxlin.report.commands.setup import configure_jax, encode, load_model

    configure_jax(dtype)
    from jaxlin.common.progress import stage
    from jaxlin.report.comparison import compare as compare_prompts
    from jaxlin.report.comparison_table import show_comparison

    check_files(html, plot)
    loaded, tokenizer = load_model(model, ignore_config_keys, rule=rule, dtype=dtype)
    ids = [encode(tokenizer, text, bos=bos, chat=chat) for text in (first, second)]
    with stage("taking both apart"):
        comparison = compare_prompts(loaded, tokenizer, ids[0], ids[1], target=target, over=over)
    show = functools.partial(show_comparison, comparison)
    give([comparison], show, model=model, as_json=as_json, html=html, plot=plot)
