"""The influence of the edges of a circuit on its target, by which it is pruned."""

import numpy as np
from jaxtyping import Bool, Float


def most_influential(
    edges: Float[np.ndarray, "c c"],
    direct: Float[np.ndarray, " c"],
    biases: Float[np.ndarray, " c"],
    fraction: float,
) -> Bool[np.ndarray, "c e"]:
    r"""Which edges, those to the target last, are the fewest with a `fraction` of the influence of all.

    With the share $A_{ab} = |e_{ab}| / (\sum_{a'} |e_{a'b}| + |\beta_b|)$ of all that enters $b$, the influence of a
    node is $I_a = \sum_b A_{ab} I_b + A_{a*}$, and that of an edge $A_{ab} I_b$; the target has the influence 1.

    Source: the pruning of attribution graphs in Ameisen et al., "Circuit Tracing", 2025.
    """
    absolute = np.concatenate([np.abs(edges), np.abs(direct)[:, None]], axis=1)
    entering = absolute.sum(axis=0) + np.append(np.abs(biases), 0)
    shares = absolute / np.where(entering, entering, 1)
    influence = shares.copy()
    for b in reversed(range(len(direct))):  # components stand in the order of the forward pass
        influence[:, b] *= influence[b].sum()
    order = np.argsort(-influence, axis=None, kind="stable")
    sums = np.cumsum(influence.reshape(-1)[order])
    count = int(np.searchsorted(sums, fraction * sums[-1] * (1 - 1e-12))) + 1
    is_among = np.zeros(influence.size, bool)
    is_among[order[:count]] = True
    return is_among.reshape(influence.shape) & (absolute > 0)
