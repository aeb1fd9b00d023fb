"""`jaxlin.attribute` against one forward pass: ``python -m benchmarks.attribution CHECKPOINT``.

Both are compiled first; runs are interleaved, and what is quoted is the ratio of the medians. The forward pass is the
jitted model to its final norm, at every position, without the unembedding.
"""

import argparse
import statistics

import jax

import jaxlin
from benchmarks.dense_map import seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a hub id, directory or .gguf file; the small model if absent")
    parser.add_argument("--text", default="The bridge out of Marin is the")
    parser.add_argument("--runs", type=int, default=21)
    args = parser.parse_args()

    model, tokenizer = jaxlin.load(args.checkpoint)
    x = model.embed(tokenizer.encode(args.text))
    target = int(model.unembed(model(x)[-1]).argmax())
    forward = jax.jit(lambda model, x: model(x))
    compiling = seconds(lambda: jaxlin.attribute(model, x, target).value)
    seconds(lambda: forward(model, x))
    passes, runs = [], []
    for _ in range(args.runs):
        passes.append(seconds(lambda: forward(model, x)))
        runs.append(seconds(lambda: jaxlin.attribute(model, x, target).value))
    run, once = statistics.median(runs), statistics.median(passes)
    found = jaxlin.attribute(model, x, target)
    print(f"device         {jax.devices()[0].device_kind}, {x.shape[0]} tokens, {x.dtype}")
    print(f"forward pass   {1e3 * once:.1f} ms")
    print(f"attribute      {1e3 * run:.1f} ms   {run / once:.2f} x the forward pass")
    print(f"first call     {compiling:.2f} s")
    print(f"defects        {found.defect:.1e} over the input, {found.component_defect:.1e} over the model")


if __name__ == "__main__":
    main()
