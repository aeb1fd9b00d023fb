"""Krylov against the dense map, and all layers against one: ``python -m benchmarks.spectrum CHECKPOINT``.

The top singular values of a long prompt's map, to a tolerance that their bounds vouch for, in a share of the time that
the dense map takes; and the dense maps from all layers of a short prompt, from one backward sweep. Runs are interleaved
with those they are compared with, and medians are quoted.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxlin
from benchmarks.dense_map import seconds
from jaxlin.krylov import default_width, krylov
from jaxlin.local_map import LocalMap
from jaxlin.spectrum import svd

README = Path(__file__).parents[1] / "README.md"


def interleaved(runs: int, *calls: Callable[[], Any]) -> list[float]:
    """The median time of each call."""
    times = [[seconds(call) for call in calls] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def passes(lmap: LocalMap, k: int, tol: float) -> int:
    """How many vectors the Krylov method sends through the map and its transpose."""
    count = 0

    def counted(product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(v: Any) -> Any:
            nonlocal count
            count += len(v)
            return product(v)

        return call

    krylov(counted(lmap.matvec), counted(lmap.rmatvec), lmap.shape, lmap.output.dtype, k, tol=tol)
    return count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a hub id, directory or .gguf file; the small model if absent")
    parser.add_argument("--text", default="The bridge out of Marin is the", help="the short prompt")
    parser.add_argument("--tokens", type=int, default=256, help="of the long prompt, which is README.md")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()

    model, tokenizer = jaxlin.load(args.checkpoint)
    lmap = jaxlin.local_map(model, model.embed(tokenizer.encode(README.read_text())[: args.tokens]))
    found = lmap.svd(args.k, method="krylov", tol=args.tol)
    jax.block_until_ready(lmap.rmatvec(np.zeros((lmap.default_block, lmap.shape[0]), np.float32)))
    results = []
    dense, fast = interleaved(
        args.runs,
        lambda: results.append(jax.block_until_ready(lmap.jacobian(progress=False))),
        lambda: lmap.svd(args.k, method="krylov", tol=args.tol),
    )
    exact = svd(np.asarray(results[-1])).s[: args.k]
    assert found.bound is not None
    print(f"{args.tokens} tokens, k = {args.k}, tol = {args.tol:g}")
    print(f"dense map          {dense:.2f} s, {lmap.shape[0]} rows; its SVD not counted")
    print(f"krylov             {fast:.2f} s   {fast / dense:.3f} x the dense map")
    print(f"products           {passes(lmap, args.k, args.tol)}, {default_width(args.tokens)} together")
    print(f"largest bound      {np.max(found.bound / found.s):.1e} relative")
    print(f"largest error      {np.max(np.abs(found.s - exact) / exact):.1e} relative, against the dense SVD")

    lmap = jaxlin.local_map(model, model.embed(tokenizer.encode(args.text)))
    held = lmap.coefficients
    layers, one = interleaved(args.runs, lambda: jaxlin.layer_maps(model, held), lambda: lmap.jacobian(progress=False))
    print(f"all layers' maps   {layers:.2f} s   {layers / one:.3f} x one dense map, {lmap.shape[1]} tokens")


if __name__ == "__main__":
    main()
