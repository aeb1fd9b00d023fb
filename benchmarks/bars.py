"""The bars that the suite measures jaxlin against, all in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What a ratio is, and what it should be.

    Attributes:
        says: what the ratio is.
        limit: the value it is compared with; None for a ratio that is only shown.
        at_least: whether the ratio should be at least `limit`, rather than at most.
    """

    says: str
    limit: float | None = None
    at_least: bool = True

    def met(self, value: float) -> bool | None:
        """Whether `value` meets the bar; None where there is none."""
        if self.limit is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return "" if self.limit is None else f"{'≥' if self.at_least else '≤'} {self.limit:.3g}"


BARS = {
    "dense, of floor": Bar("dense map, once recorded: the floor of the plain transposes / its time", 0.95),
    "dense, over PyTorch": Bar("dense map: fastest PyTorch / ours", 1.0),
    "dense, over vectorize": Bar("dense map: torch jacobian(vectorize=True) / ours"),
    "dense, over jacrev": Bar("dense map: jacrev of the linearized model / ours"),
    "dense, over jacfwd": Bar("dense map: jacfwd of the linearized model / ours"),
    "dense, compile": Bar("dense map: seconds to compile", 1.0, at_least=False),
    "dense, depth": Bar("dense map: temporary memory at full depth / at a quarter", 1.1, at_least=False),
    "precision, residual": Bar("dense map in the default precision: residual", 3e-6, at_least=False),
    "layers, over one": Bar("all layers' maps: one sweep / one dense map", 1.5, at_least=False),
    "layers, over each": Bar("all layers' maps: a Jacobian for each / one sweep"),
    "krylov, over dense": Bar("top-k spectrum: Krylov / dense map"),
    "krylov, over dense at 256": Bar("top-k spectrum: Krylov / dense map", 1 / 6, at_least=False),
    "attribution, over forward": Bar("attribution: ours / one forward pass", 3.0, at_least=False),
    "attribution, over PyTorch": Bar("attribution: one PyTorch backward pass / ours"),
    "batch, over each": Bar("attributions of prompts of unequal lengths: one call / a call for each", 1 / 3, False),
    "circuits, over forward": Bar("whole circuit: ours / one forward pass with all logits", 2.0, at_least=False),
    "circuits, over forward at length": Bar("whole circuit: ours / one forward pass with all logits"),
    "circuits, over last": Bar("whole circuit: ours / one forward pass with the last logits alone"),
    "circuits, memory": Bar("whole circuit: GiB that it takes beyond the model", 1.0, at_least=False),
    "circuits, long": Bar("whole circuit: GiB of the whole process at its peak", 6.0, at_least=False),
    "lens, over PyTorch": Bar("fit of a lens: PyTorch / ours"),
    "packed, over float32": Bar("a few vectors times packed weights / times float32 weights"),
    "load, memory": Bar("load: peak memory / weights held", 1.3, at_least=False),
    "load, over transformers": Bar("load: time of transformers / ours"),
    "load, memory over transformers": Bar("load: peak memory of transformers / ours"),
    "large, rows": Bar("all layers from a few: |time of a block of rows, extrapolated / measured - 1|", 0.15, False),
    "large, recording": Bar("all layers from a few: |time of recording, extrapolated / measured - 1|", 0.15, False),
    "large, memory": Bar("all layers from a few: |memory, extrapolated / measured - 1|", 0.15, False),
    "long, memory": Bar("a long prompt: GiB of the whole process at its peak", 6.0, at_least=False),
    "experts, of floor": Bar("rows through experts: the floor of the chosen experts alone / their time", 0.7),
    "experts, memory": Bar("rows through experts: temporary memory / that of dense layers as wide", 1.2, False),
    "delta, over softmax": Bar("patterns of the delta rule: time / that of softmax patterns", 3.0, False),
    "delta, memory": Bar("the delta rule of a long prompt: GiB that it takes", 2.0, False),
    "scaling": Bar("scaling: measured exponent - expected exponent"),
    "gpu, of floor": Bar("dense map on a GPU: its floor / its time", 0.6),
}
"""By the key of a `benchmarks.results.Ratio`.

The dense map is compared with the floor of the machine, and must not be slower than PyTorch. How many times faster it
is than PyTorch has no bar: that measures the matrix products of another library.
"""

AGREE = 1e-4
"""The largest relative difference between two maps that are compared; beyond it nothing is reported."""
