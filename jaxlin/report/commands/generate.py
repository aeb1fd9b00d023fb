"""``jaxlin generate``: a prompt, continued."""

import functools
from typing import Annotated, Any

import typer

from jaxlin.report.commands import options


def generate(
    text: Annotated[str, typer.Argument(help="Prompt to continue.")],
    model: options.Model = None,
    dtype: options.Dtype = "float32",
    max_new_tokens: options.NewTokens = 64,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = 0,
    bos: options.Bos = None,
    chat: options.Chat = False,
    as_json: options.Json = False,
    html: options.Html = None,
    plot: options.Plot = None,
    ignore_config_keys: options.IgnoredKeys = None,
) -> None:
    """Continue a prompt; with --chat, answer it.

    The plot and the JSON have the probability of each new token, before the temperature.
    """
    from jaxlin.report.commands.output import check_files, give
    from jaxlin.report.commands.setup import configure_jax, encode, load_model

    configure_jax(dtype)
    from jaxlin.common.progress import stage
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

    def values() -> dict[str, Any]:
        probabilities = generation.probabilities
        # Logits are a number for each word of the vocabulary, at each token.
        without_logits = {name: value for name, value in generation.to_dict().items() if name != "logits"}
        return {**without_logits, "probabilities": [] if probabilities is None else probabilities.tolist()}

    prompt = tokenizer.decode(ids, skip_special_tokens=not chat)
    show = functools.partial(show_generation, generation, prompt)
    give([generation], show, model=model, as_json=as_json, html=html, plot=plot, values=values)
