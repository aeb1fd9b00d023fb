"""Where a prediction is decided: activation patching, beside what the local linear map predicts of it.

    python examples/patching.py
    python examples/patching.py "The capital of France is the city of" "The capital of Italy is the city of" \
        --target Paris --over Rome --model HuggingFaceTB/SmolLM2-135M

For each layer and token, the residual stream that enters the layer at that token is replaced by that of the second
prompt. A number is the share of the difference between the two prompts that this replacement alone makes: 1.00 for all.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

import jaxlin
from jaxlin.causal import activation_patching


def main() -> None:
    """Print the effect of each patch, and what the map predicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="The boy was sad because")
    parser.add_argument(
        "other", nargs="?", default="The girl was sad because", help="a prompt with the same number of tokens"
    )
    parser.add_argument("--model", help="a hub id, directory or .gguf file; the small model unless given")
    parser.add_argument("--target", default="he")
    parser.add_argument("--over", default="she", help="a second word: the difference of the two logits is read")
    args = parser.parse_args()

    model, tokenizer = jaxlin.load(args.model)
    ids, others = tokenizer.encode(args.text), tokenizer.encode(args.other)
    words = (args.target, args.over)
    patching = activation_patching(model, model.embed(ids), model.embed(others), words, tokenizer=tokenizer)

    difference = patching.other - patching.value
    logits = f"{patching.value:+.2f} after {args.text!r}, {patching.other:+.2f} after {args.other!r}"
    print(f"the logit of {args.target!r} over that of {args.over!r}: {logits}")
    names = [
        name if name == other else f"{name} → {other}"
        for name, other in zip(tokenizer.to_str_tokens(ids), tokenizer.to_str_tokens(others), strict=True)
    ]
    for title, shares in (
        ("Measured in the model", patching.recovered),
        (f"Predicted by the map; rank correlation {patching.rank_correlation:.2f}", patching.predicted / difference),
    ):
        table = Table("layer", *names, title=title, title_justify="left")
        for layer, row in enumerate(shares):
            table.add_row(str(layer), *(f"{share:.2f}" if np.abs(share) >= 0.005 else "·" for share in row))
        Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
