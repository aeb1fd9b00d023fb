"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

MODEL_HELP = "Hub id, directory or .gguf file. Default: the small model that ships with jaxlin."

SMALL_MODEL = "the small model of jaxlin"
"""The name of the model that is taken where none is given."""

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
Bos = Annotated[bool | None, typer.Option(help="Begin the prompt with the BOS token. Default: as the tokenizer does.")]
Chat = Annotated[
    bool, typer.Option("--chat", help="Take the prompt as a user's message, in the model's chat template.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Html = Annotated[Path | None, typer.Option(help="Also write the result as a page to this file.")]
Plot = Annotated[
    Path | None, typer.Option(help="Also draw the result to this file, .png, .svg or .pdf. Needs matplotlib.")
]
NewTokens = Annotated[int, typer.Option(min=1, help="Largest number of new tokens.")]
Temperature = Annotated[
    float, typer.Option(min=0, help="0 takes the likeliest token at each step; above 0, tokens are drawn.")
]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw from this many of the likeliest tokens. Default: all.")]
TopP = Annotated[
    float | None, typer.Option(help="Draw from the likeliest tokens that sum to this probability. Default: all.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draws.")]
Position = Annotated[
    int, typer.Option(help="Token after which the prediction is read; negative numbers count from the end.")
]
