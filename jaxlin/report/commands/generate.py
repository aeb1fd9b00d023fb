"""``jaxlin generate``: a prompt, continued."""

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
    NewTokens,
    Plot,
    Seed,
    Temperature,
    TopK,
    TopP,
)


def generate(
    text: Annotated[str, typer.Argument(help="Prompt to continue.")],
    model: Model = None,
    dtype: Dtype = "float32",
    max_new_tokens: NewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    bos: Bos = None,
    chat: Chat = False,
    as_json: Json = False,
    html: Html = None,
    plot: Plot = None,
    ignore_config_keys: IgnoredKeys = None,
) -> None:
    """Continue a prompt; with --chat, answer it.

    The plot and the JSON have the probability of each new token, before the temperature.
    """
    from jaxlin.report.commands.output import check_files, name_files, print_json
    from jaxlin.report.commands.setup import configure_jax, encode, load_model

    configure_jax(dtype)
    from rich.console import Console

    from jaxlin.common.progress import stage
    from jaxlin.plots import save_plot
    from jaxlin.report.result_page import write_result
    from jaxlin.report.steering_table import show_generation
    from jaxlin.steering import generate as continue_prompt

    check_files(html, plot)
    loaded, tokenizer = load_model(model, ignore_config_keys, dtype=dtype)
    ids = encode(tokenizer, text, bos=bos, chat=chat)
    with stage("generating"):
        generation = continue_prompt(
            loaded,
            tokenizer,
            ids,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            return_logits=as_json or plot is not None,
        )
    if html is not None:
        write_result([generation], html, name=model or SMALL_MODEL)
    if plot is not None:
        save_plot(generation.plot, plot)
    if as_json:
        # Logits are a number for each word of the vocabulary, at each token.
        values = {name: value for name, value in generation.to_dict().items() if name != "logits"}
        probabilities = generation.probabilities
        print_json({**values, "probabilities": [] if probabilities is None else probabilities.tolist()})
    else:
        console = Console(highlight=False)
        show_generation(generation, tokenizer.decode(ids, skip_special_tokens=not chat), console)
        name_files(console, html, plot)
