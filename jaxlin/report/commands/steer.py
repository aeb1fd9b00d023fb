"""``jaxlin steer``: generation with a direction added to the residual stream, at several strengths."""

import functools
from typing import Annotated, Any

import typer

from jaxlin.report.commands import options

STRENGTHS = (0.0, 0.1, 0.2, 0.4)
"""The strengths that are tried where none is given, as shares of the norm of the stream."""


def steer(
    text: Annotated[str, typer.Argument(help="Prompt to continue.")],
    word: Annotated[
        str | None, typer.Option(help="Steer towards this word, by its row of the unembedding. One token.")
    ] = None,
    towards: Annotated[
        list[str] | None,
        typer.Option(help="Text that has what to steer towards; needs --away. May be given more than once."),
    ] = None,
    away: Annotated[list[str] | None, typer.Option(help="Text that lacks it. May be given more than once.")] = None,
    layer: Annotated[
        int | None, typer.Option(min=0, help="Layer after which the direction is added. Default: the middle one.")
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="How much to add, as a share of the norm of the residual stream; 0 is the ordinary model. May be "
            "given more than once. Default: 0, 0.1, 0.2 and 0.4."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Word whose probability is measured at each strength. Default: that of --word."),
    ] = None,
    model: options.Model = None,
    dtype: options.Dtype = "float32",
    max_new_tokens: options.NewTokens = 24,
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
    """Continue a prompt while a direction is added to the model's activations, at several strengths.

    The direction is that of a word (--word), or the difference of the activations at the last tokens of two groups of
    texts (--towards, --away). Where there is a word to measure, the strengths are compared by numbers too.
    """
    from jaxlin.report.commands.output import check_files, give
    from jaxlin.report.commands.setup import configure_jax, encode, load_model

    configure_jax(dtype)
    from jaxlin.common.errors import JaxlinError
    from jaxlin.common.progress import stage
    from jaxlin.report.steering_table import show_curve, show_doses
    from jaxlin.steering import add, dose_curve, generate

    if (word is None) == (towards is None and away is None) or (towards is None) != (away is None):
        raise JaxlinError("Steer: expected either --word, or both --towards and --away.")
    target = word if target is None else target
    if plot is not None and target is None:
        raise JaxlinError("Steer: expected a word to draw the probability of; found none. Give it by --target.")
    check_files(html, plot)
    loaded, tokenizer = load_model(model, ignore_config_keys, dtype=dtype)
    ids = encode(tokenizer, text, bos=bos, chat=chat)
    prompt = tokenizer.decode(ids, skip_special_tokens=not chat)
    site = ("resid_post", loaded.config.num_hidden_layers // 2 if layer is None else layer)
    doses = list(STRENGTHS) if strength is None else strength
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    with stage(f"generating at {len(doses)} strengths"):
        edit = add(site, _direction(loaded, tokenizer, site, word, towards or [], away or []))
        if target is not None:
            curve = dose_curve(loaded, tokenizer, edit, [ids], target, doses, max_new_tokens=max_new_tokens, **sampling)
            results, values = [curve], curve.to_dict()
            show = functools.partial(show_curve, curve, prompt)
        else:
            edits = [edit.at_strength(dose) for dose in doses]
            results = [generate(loaded, tokenizer, ids, max_new_tokens, edits=[each], **sampling) for each in edits]
            values = {"site": list(site), "strengths": doses, "generations": [each.to_dict() for each in results]}
            show = functools.partial(show_doses, doses, [each.text for each in results], prompt)
    give(results, show, model=model, as_json=as_json, html=html, plot=plot, values=lambda: values)


def _direction(model: Any, tokenizer: Any, site: Any, word: str | None, towards: list[str], away: list[str]) -> Any:
    """The direction of a word, or from one group of texts to another at `site`."""
    from jaxlin.steering import mean_difference, token_direction

    if word is not None:
        return token_direction(model, tokenizer.to_single_token(f" {word.strip()}"))
    there, here = ([tokenizer.encode(text) for text in texts] for texts in (towards, away))
    return mean_difference(model, there, here, site)
