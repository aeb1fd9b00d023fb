"""The residual stream in words, at each layer and token: by the logit lens, by a Jacobian lens, and exactly.

    python examples/lens.py
    python examples/lens.py "The capital of France is the city of" --model HuggingFaceTB/SmolLM2-135M
    python examples/lens.py TEXT --model google/gemma-2-2b --lens FILE.pt

Each cell of a lens is the likeliest token if the stream there went through the final norm. FILE is a ``.pt`` or
``.safetensors`` file, published or written by `jaxlin.lens.fit`; without one the logit lens alone is shown. A cell of
the exact lens is what the stream contributes to the output at the last position: the token that this promotes most, and
its share of the output.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import jaxlin


def main() -> None:
    """Print one table for each lens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="The bridge out of the town is the")
    parser.add_argument("--model", help="a hub id, directory or .gguf file; the small model unless given")
    parser.add_argument("--lens", help="the file of a Jacobian lens of this model")
    parser.add_argument("--last", type=int, default=6, help="how many of the last tokens to show; 6 if absent")
    args = parser.parse_args()

    model, tokenizer = jaxlin.load(args.model)
    ids = tokenizer.encode(args.text)
    x, tokens = model.embed(ids), tokenizer.to_str_tokens(ids)[-args.last :]

    lenses = {"The logit lens": None} | ({args.lens: jaxlin.lens.load(args.lens)} if args.lens else {})
    for title, lens in lenses.items():
        reading = jaxlin.lens.read(model, x, lens, k=1, positions=range(-len(tokens), 0))
        words = [tokenizer.to_str_tokens(best) for best in reading.ids[..., 0]]
        show(title, tokens, reading.layers, words)

    exact = jaxlin.lens.exact(model, x)
    best = np.asarray(exact.words(model, k=1).positive.ids)[..., 0]
    shares = exact.parts @ exact.output / (exact.output @ exact.output)
    cells = [
        [f"{word} {share:.0%}" if abs(share) >= 0.005 else "·" for word, share in zip(words, row, strict=True)]
        for words, row in zip(map(tokenizer.to_str_tokens, best), shares, strict=True)
    ]
    title = f"Exactly: each whole row sums to the output, but for {exact.defect:.0e} of it"
    show(title, tokens, ["embed", *range(len(cells) - 1)], [row[-args.last :] for row in cells])


def show(title: str, tokens: Sequence[str], layers: Sequence[object], cells: Sequence[Sequence[str]]) -> None:
    """Print a row for each layer, a column for each token."""
    shown = Table("layer", *map(escape, tokens), title=escape(title), title_justify="left")
    for layer, row in zip(layers, cells, strict=True):
        shown.add_row(str(layer), *map(escape, row))
    Console(highlight=False).print(shown)


if __name__ == "__main__":
    main()
