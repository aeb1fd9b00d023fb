"""The paper on one prompt: the map, its residual, its spectrum in words, its layers, and null baselines.

    python examples/walkthrough.py
    python examples/walkthrough.py "The bridge out of Marin is the" --model HuggingFaceTB/SmolLM2-135M

The experiments are those of James R. Golden, "Large Language Models are Locally Linear Mappings", arXiv 2505.24293. The
null baselines at the end are added here.
"""

import argparse

import jax
import numpy as np

import jaxlin
from jaxlin.spectrum.layer_spectra import cumulative_spectra, single_layer_spectra
from jaxlin.spectrum.null_baselines import compare_baselines
from jaxlin.spectrum.words import nearest_embeddings, promoted_tokens


def main() -> None:
    """Print each experiment with its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="The bridge out of the town is the")
    parser.add_argument("--model", help="a hub id, directory or .gguf file; the small model unless given")
    args = parser.parse_args()

    model, tokenizer = jaxlin.load(args.model, linearize=True)
    ids = tokenizer.encode(args.text)
    x = model.embed(ids)

    print("1. The map, by plain JAX: J = jacfwd of the linearized model, and J x is the output")
    dense = jax.jit(jax.jacfwd(lambda model, x: model(x)[-1], argnums=1))(model, x)
    lmap = jaxlin.local_map(model, x)
    print(f"   J is {dense.shape}; |J x + b - f(x)| / |f(x)| = {lmap.residual_of(dense):.1e}")
    ordinary = jax.jit(jax.jacrev(lambda model, x: model(x)[-1], argnums=1))(jaxlin.load(args.model)[0], x)
    print(f"   the ordinary Jacobian reconstructs nothing: {lmap.residual_of(ordinary):.1e}")
    print(f"   rows of the operator are those of J, to {np.abs(lmap.jacobian(progress=False) - dense).max():.0e}")

    print("\n2. Its spectrum, in words: what a left vector promotes, what a right vector reads at its heaviest token")
    u, s, v = lmap.svd(k=6)
    for i in range(len(s)):
        heaviest = int(np.argmax(np.sum(np.square(v[i]), axis=-1)))
        says = [tokenizer.token(int(token)) for token in promoted_tokens(model, u[:, i], 4).ids]
        reads = [tokenizer.token(int(token)) for token in nearest_embeddings(model, v[i, heaviest], 4).ids]
        print(f"   {s[i]:8.2f}  {' '.join(says):40} reads {tokenizer.token(ids[heaviest])}: {' '.join(reads)}")

    print("\n3. Layer by layer: the stable rank of the map up to each layer, and of each layer alone")
    upto = cumulative_spectra(model, x, kinds=("resid_post",))["resid_post"]
    alone = single_layer_spectra(model, x, kinds=("resid_post",))["resid_post"]
    for layer, path in enumerate(upto.path()):
        words = [tokenizer.token(int(token)) for token in promoted_tokens(model, upto.u[layer, 0], 4).ids]
        ranks = f"{upto.stable_rank[layer]:6.2f} {alone.stable_rank[layer]:8.2f}"
        print(f"   layer {layer:2}  {ranks}   path ({path[0]:+.2f}, {path[1]:+.2f})   {' '.join(words)}")

    print("\n4. What exact reconstruction alone is worth: the same figures of maps that mean nothing")
    print("   " + str(compare_baselines(model, x, k=4)).replace("\n", "\n   "))


if __name__ == "__main__":
    main()
