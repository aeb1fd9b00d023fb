"""What the causal checks share: how many forward passes go together, and how effects and contributions are compared."""

import numpy as np
from jaxtyping import Float

BATCH = 8
"""Prompts whose forward passes are in memory together."""


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; not a number where either is constant."""
    ranks = [np.searchsorted(np.sort(v), v) + np.searchsorted(np.sort(v), v, side="right") for v in (a, b)]
    centred = [r - r.mean() if len(r) else r for r in ranks]
    scale = np.sqrt(np.sum(centred[0] ** 2) * np.sum(centred[1] ** 2))
    return float(np.sum(centred[0] * centred[1]) / scale) if scale else float("nan")
