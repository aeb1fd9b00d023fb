r"""The circuit of a prediction: what is exact in the frozen model, and what the untouched model does along it alone.

    python examples/circuit.py
    python examples/circuit.py "When Mary and John went to the store, John gave a drink to" \
        "When Mary and John went to the store, Kate gave a drink to" \
        --target Mary --over John --model HuggingFaceTB/SmolLM2-135M-Instruct

First come the components with the largest effects and the largest edges, all exact sums in the model that is frozen at
the prompt. Then the untouched model runs along the edges of pruned circuits alone. Everywhere else its heads and MLPs
read what is written in the second prompt, which has as many tokens. A share of 1.00 is the whole difference between the
two prompts.
"""

import argparse

import numpy as np

import jaxlin
from jaxlin.causal import edge_ablation


def main() -> None:
    """Print the largest components and edges, and the shares of pruned circuits."""
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
    x, other = (model.embed(tokenizer.encode(text)) for text in (args.text, args.other))
    words = (args.target, args.over)
    circuit = jaxlin.circuit(model, x, words, tokenizer=tokenizer)
    print(f"the logit of {args.target!r} over that of {args.over!r}: {circuit.value:+.2f}")
    print(f"{len(circuit.components)} components, conserved to {circuit.defect:.0e} of the largest effect")

    print("\nthe largest effects by all paths, in the frozen model")
    for index in np.argsort(-np.abs(circuit.nodes))[:8]:
        print(f"  {circuit.components[index]:8} {circuit.nodes[index]:+8.2f}")
    print("\nthe largest edges")
    for edge in circuit.top(8):
        print(f"  {edge.source:>8} → {edge.target:8} {edge.effect:+8.2f}")

    fractions = (0.5, 0.8, 0.9, 0.95)
    pruned = [circuit.prune(fraction) for fraction in fractions]
    print("\nthe untouched model: share of the difference with the edges alone, and without them")
    print("  influence   edges   alone   without   alone, values only")
    everything = edge_ablation(model, x, other, words, pruned, tokenizer=tokenizer)
    values = edge_ablation(model, x, other, words, pruned, reads="values", tokenizer=tokenizer)
    for index, fraction in enumerate(fractions):
        shares = everything.faithfulness[index], 1 - everything.completeness[index], values.faithfulness[index]
        alone, without, of_values = (f"{share:.2f}" for share in shares)
        print(f"  {fraction:9.0%}   {everything.counts[index]:5}   {alone:>5}   {without:>7}   {of_values:>18}")


if __name__ == "__main__":
    main()
