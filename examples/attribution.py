"""Where a prediction comes from: one logit, or the difference of two, as exact sums over tokens, layers and heads.

    python examples/attribution.py
    python examples/attribution.py "The boy and the girl went to the" --target park --over house

Two lists of the same value. By token: everything that a token's embedding brings, by whatever path. By part of the
model: what the embedding, each attention and each MLP write to the stream at the last position. Then checks that
an exact sum cannot give: zero each head, delete each token, and see what the logit really does.
"""

import argparse

import numpy as np

import jaxlin
from jaxlin.causal import deletion, head_ablation
from jaxlin.linearize.targets import without_words

WIDTH = 30


def bars(rows: list[tuple[str, float]]) -> None:
    """Print signed bars."""
    largest = max(abs(size) for _, size in rows) or 1.0
    for name, size in rows:
        print(f"  {name:16} {size:+8.3f}  {('█' if size > 0 else '░') * round(WIDTH * abs(size) / largest)}")


def main() -> None:
    """Print both lists, the heads and neurons that bring the most, and the deletions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="The children went to the")
    parser.add_argument("--model", help="a hub id, directory or .gguf file; the small model unless given")
    parser.add_argument("--target", default="park")
    parser.add_argument("--over", help="a second word: the difference of the two logits")
    args = parser.parse_args()

    model, tokenizer = jaxlin.load(args.model)
    ids = tokenizer.encode(args.text)
    x, names = model.embed(ids), tokenizer.to_str_tokens(ids)
    words = (args.target, args.over) if args.over else args.target
    target = without_words(model, tokenizer, words, x, -1)
    attribution = jaxlin.attribute(model, x, target)

    print(f"{args.text!r} -> {words!r}: {attribution.value:.4f}")
    print(f"\nby token; the sum is off by {attribution.defect:.0e} of the largest")
    bars([*zip(names, attribution.tokens.tolist(), strict=True), ("b, the biases", attribution.bias)])
    print(f"\nby part of the model; off by {attribution.component_defect:.0e}")
    parts = [("the embedding", attribution.embed)]
    for layer, (attn, mlp) in enumerate(zip(attribution.attn, attribution.mlp, strict=True)):
        parts += [(f"attention {layer}", float(attn)), (f"MLP {layer}", float(mlp))]
    bars([*parts, ("after the blocks", attribution.final_bias)])
    heads = sorted(np.ndindex(attribution.heads.shape), key=lambda head: -attribution.heads[head])
    print("\nthe heads that bring the most")
    bars([(f"layer {head[0]}, head {head[1]}", float(attribution.heads[head])) for head in heads[:4]])
    print("\nthe neurons that bring or cost the most")
    neurons = zip(attribution.neurons.layer, attribution.neurons.index, attribution.neurons.contribution, strict=True)
    bars([(f"layer {layer}, {index}", float(size)) for layer, index, size in list(neurons)[:4]])
    gone = head_ablation(model, x, target)
    correlation = f"rank correlation with all that they bring by the map: {gone.rank_correlation:.2f}"
    print(f"\nwhat zeroing those heads takes from it; of all heads, {correlation}")
    bars([(f"layer {head[0]}, head {head[1]}", float(gone.effects[head])) for head in heads[:4]])
    deleted = deletion(model, x, target)
    correlation = f"rank correlation with the list by token: {deleted.rank_correlation:.2f}"
    print(f"\nwhat deleting a token takes from it; {correlation}")
    bars(list(zip(names, deleted.effects.tolist(), strict=True)))


if __name__ == "__main__":
    main()
