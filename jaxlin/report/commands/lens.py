"""``jaxlin lens``: what each layer would predict, or what each token's stream contributes from there."""

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxlin.report.commands import options


def lens(
    text: Annotated[str, typer.Argument(help="Prompt to read.")],
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Split the output into the parts of each token's stream, which add up to it at every layer."
        ),
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("--lens", help="Jacobian lens to read with, a .pt or .safetensors file. Default: the logit lens."),
    ] = None,
    model: options.Model = None,
    rule: options.Rule = "gate",
    dtype: options.Dtype = "float32",
    position: options.Position = -1,
    target: Annotated[
        str | None,
        typer.Option(help="Word whose rank is shown at each layer. Default: the word that the model predicts."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="Number of words to show.")] = 5,
    bos: options.Bos = None,
    chat: options.Chat = False,
    as_json: options.Json = False,
    html: options.Html = None,
    plot: options.Plot = None,
    ignore_config_keys: options.IgnoredKeys = None,
) -> None:
    """Read the words that each layer would predict, if the model ended there.

    The logit lens reads the residual stream after a layer by the model's own final norm and unembedding; a Jacobian
    lens (--lens) first carries it to the last layer by a matrix that was fitted on a corpus. The terminal shows one
    position, the page, the plot and the JSON all of them. The exact lens (--exact) splits the model's output at one
    position into parts that add up to it, one for each token and layer, with nothing fitted.
    """
    from jaxlin.report.commands.output import check_files, give
    from jaxlin.report.commands.setup import configure_jax, encode, load_model

    configure_jax(dtype)
    from jaxlin.common.errors import JaxlinError
    from jaxlin.common.progress import stage
    from jaxlin.lens import load
    from jaxlin.report.lens_table import show_parts, show_reading

    if exact and (file is not None or target is not None):
        other = "--lens" if file is not None else "--target"
        raise JaxlinError(
            f"Lens: expected --exact or {other}; found both. The exact lens has no matrices and no ranks."
        )
    check_files(html, plot)
    matrices = None if file is None else load(file)
    loaded, tokenizer = load_model(model, ignore_config_keys, rule=rule, dtype=dtype)
    ids = encode(tokenizer, text, bos=bos, chat=chat)
    with stage("reading"):
        if exact:
            result, words = _parts(loaded, ids, position, top)
        else:
            result, words = _reading(loaded, tokenizer, ids, matrices, position, target, top)

    def values() -> dict[str, Any]:
        without_vectors = {name: value for name, value in result.to_dict().items() if name != "parts"}
        return {**without_vectors, **({"projections": result.projections.tolist()} if exact else {}), "words": words}

    show = functools.partial(show_parts, result, words) if exact else functools.partial(show_reading, result, position)
    give([result], show, model=model, as_json=as_json, html=html, plot=plot, values=values)


def _reading(
    model: Any, tokenizer: Any, ids: list[int], matrices: Any, position: int, target: str | None, top: int
) -> tuple[Any, Any]:
    """The reading of all positions with the rank of the target, and its words."""
    import numpy as np

    from jaxlin.lens import read
    from jaxlin.linearize.targets import likelier_spelling
    from jaxlin.nn.sites import position_in

    x = model.embed(ids)
    index = position_in(len(ids), position)
    if target is None:
        token = int(read(model, x, matrices, k=top, tokens=[0]).ids[-1, index, 0])
    else:
        token = likelier_spelling(tokenizer, target, np.asarray(model.unembed(model(x)[index])))
    reading = read(model, x, matrices, k=top, tokens=[token])
    return reading, reading.words


def _parts(model: Any, ids: list[int], position: int, top: int) -> tuple[Any, Any]:
    """The parts of the output at a position, and the words that each raises most."""
    from jaxlin.lens import exact

    parts = exact(model, model.embed(ids), position=position)
    return parts, parts.words(model, top).positive.words
