"""``jaxlin explain``: one prediction, explained by its local linear map."""

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

from jaxlin.report.commands import options


def explain(
    text: Annotated[str, typer.Argument(help="Prompt whose next token is explained.")],
    model: options.Model = None,
    rule: options.Rule = "gate",
    dtype: options.Dtype = "float32",
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
    bos: options.Bos = None,
    chat: options.Chat = False,
    as_json: options.Json = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write an interactive page, with layers, lenses and heads, to this file.")
    ] = None,
    lens: Annotated[Path | None, typer.Option(help="File of a Jacobian lens, to show on the page.")] = None,
    plot: options.Plot = None,
    devices: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Number of devices to shard the model and the rows of J over.")
    ] = None,
    ignore_config_keys: options.IgnoredKeys = None,
) -> None:
    """Explain one prediction: what each token contributes to the logit, and what the map reads and writes.

    Once its attention patterns, norms and gates are frozen at their values for the prompt, the model is exactly linear
    in the prompt's embeddings x: its output after the final norm is f(x) = J x + b. The command prints what each token
    contributes to a logit through J, and the singular vectors of J in words.
    """
    from jaxlin.report.commands.output import check_files, give
    from jaxlin.report.commands.setup import configure_jax, encode, load_model

    configure_jax(dtype, devices)
    from jaxlin.common.progress import stage
    from jaxlin.report.build import explain as explain_prediction
    from jaxlin.report.terminal import show as show_explanation

    check_files(html, plot)
    loaded, tokenizer = load_model(model, ignore_config_keys, linearize=True, rule=rule, dtype=dtype, mesh=devices)
    with stage("computing the map"):
        explanation = explain_prediction(
            loaded,
            tokenizer,
            encode(tokenizer, text, bos=bos, chat=chat),
            position=position,
            target=target,
            over=over,
            top=top,
            spectrum=spectrum,
            with_detail=html is not None,
            lens=lens,
        )
    show = functools.partial(show_explanation, explanation)
    give([explanation], show, model=model, as_json=as_json, html=html, plot=plot)
