"""Where a prediction comes from: one logit, or the difference of two, as exact sums over tokens, layers and heads.

    python examples/attribution.py
    python examples/attribution.py "The boy and the girl went to the" --target park --over house

It prints two lists that sum to the same value. By token: what the token's embedding contributes along all paths. By
part of the model: what the embedding, each attention and each MLP add to the residual stream at the last position. Then
come two checks that an exact sum cannot give: how the logit changes when each head is zeroed, and when each token is
deleted.
"""

import argparse

import numpy as np

import jaxlin
from jaxlin.causal import deletion, head_ablation
from jaxlin.linearize.targets import resolve_target

WIDTH = 30


def bars(rows: list[tuple[str, float]]) -> None:
    """Print signed bars."""
    largest = max(abs(size) for _, size in rows) or 1.0
    for name, size in rows:
        print(f"  {name:16} {size:+8.3f}  {('█' if size > 0 else '░') * round(WIDTH * abs(size) / largest)}")


def main() -> None:
    """Print both lists, the largest heads and neurons, and the effects of zeroing heads and deleting tokens."""
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
    target = resolve_target(model, words, x, -1, tokenizer)
    attribution = jaxlin.attribute(model, x, target)

    print(f"{args.text!r} -> {words!r}: {attribution.value:.4f}")
    print(f"\nby token; the sum is off by {attribution.defect:.0e} of the largest part")
    bars([*zip(names, attribution.tokens.tolist(), strict=True), ("b, the biases", attribution.bias)])
    print(f"\nby part of the model; the sum is off by {attribution.component_defect:.0e} of the largest part")
    parts = [("the embedding", attribution.embed)]
    for layer, (attn, mlp) in enumerate(zip(attribution.attn, attribution.mlp, strict=True)):
        parts += [(f"attention {layer}", float(attn)), (f"MLP {layer}", float(mlp))]
    bars([*parts, ("after the blocks", attribution.final_bias)])
    heads = sorted(np.ndindex(attribution.heads.shape), key=lambda head: -attribution.heads[head])
    print("\nthe heads that contribute most")
    bars([(f"layer {head[0]}, head {head[1]}", float(attribution.heads[head])) for head in heads[:4]])
    print("\nthe neurons with the largest contributions, of either sign")
    neurons = zip(attribution.neurons.layer, attribution.neurons.index, attribution.neurons.contribution, strict=True)
    bars([(f"layer {layer}, {index}", float(size)) for layer, index, size in list(neurons)[:4]])
    ablation = head_ablation(model, x, target)
    correlation = f"rank correlation with their contributions by the map: {ablation.rank_correlation:.2f}"
    print(f"\nby how much zeroing each of those heads lowers it; over all heads, {correlation}")
    bars([(f"layer {head[0]}, head {head[1]}", float(ablation.effects[head])) for head in heads[:4]])
    deleted = deletion(model, x, target)
    correlation = f"rank correlation with the list by token: {deleted.rank_correlation:.2f}"
    print(f"\nby how much deleting each token lowers it; {correlation}")
    bars(list(zip(names, deleted.effects.tolist(), strict=True)))


if __name__ == "__main__":
    main()
