r"""How many directions a map is worth, counted in six ways, with the first token and without it."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.linearize.linalg.gram_matrix import MEMORY, gram_from_rows, left_vectors
from jaxlin.linearize.linalg.triplets import effective_rank, stable_rank
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sharding import to_numpy

KL = 0.01
"""Nats by which a truncated prediction may differ from the whole one and still count as the same."""

BATCH = 32
"""Truncations unembedded together."""


@dataclass(frozen=True)
class Ranks:
    r"""Of a map with singular values $\sigma_i$ and energies $\sigma_i^2$.

    Attributes:
        stable: $\sum_i \sigma_i^2 / \sigma_1^2$.
        effective: $\exp(-\sum_i p_i \ln p_i)$ with $p_i = \sigma_i / \sum_j \sigma_j$.
        participation: $(\sum_i \sigma_i^2)^2 / \sum_i \sigma_i^4$.
        energy90: how many components hold 90 % of the energy.
        energy99: how many hold 99 %.
        prediction: from how many components on the truncated map keeps the most likely next token, with a KL divergence
            to the whole prediction below `KL`; None where the map does not lead to the final norm.
    """

    stable: float
    effective: float
    participation: float
    energy90: int
    energy99: int
    prediction: int | None = None


class MapRanks(NamedTuple):
    """What `map_ranks` found.

    Attributes:
        whole: of the joint map.
        without_first: of the map without the first token, whose embedding dominates many spectra, from which the
            prediction is made with the first token's contribution left whole; None where there is no other token.
    """

    whole: Ranks
    without_first: Ranks | None


def ranks_of_spectrum(s: Float[np.ndarray, " k"], prediction: int | None = None) -> Ranks:
    """The ranks of a spectrum: all of its singular values, the largest first."""
    energy = np.square(s.astype(np.float64))
    held = np.cumsum(energy) / np.sum(energy)
    # A sum of all the parts may round to just below the whole.
    count90, count99 = (min(int(np.searchsorted(held, share - 1e-12)) + 1, len(s)) for share in (0.9, 0.99))
    participation = float(np.sum(energy) ** 2 / np.sum(np.square(energy)))
    return Ranks(stable_rank(s), effective_rank(s), participation, count90, count99, prediction)


def map_ranks(lmap: LocalMap, *, memory: int = MEMORY) -> MapRanks:
    """Count the directions of `lmap`, from its rows; the map is not stored, see `jaxlin.linearize.linalg.gram_matrix`.

    Args:
        lmap: the map.
        memory: bytes of rows that may be kept together.
    """
    found = gram_from_rows(lmap.rmatvec, lmap.shape, lmap.output.dtype, block=lmap.default_block, memory=memory)
    x = np.asarray(lmap.x)
    parts = to_numpy(lmap.matvec(np.stack([np.where(np.arange(len(x))[:, None] == 0, x, 0), x]))).astype(np.float64)
    first, whole = parts

    def count(matrix: Float[np.ndarray, "d d"], y: Float[np.ndarray, " d"], rest: Float[np.ndarray, " d"]) -> Ranks:
        u, s = left_vectors(matrix)
        return ranks_of_spectrum(s, keeping_prediction(lmap.model, u, y, rest) if lmap.target.final else None)

    bias = np.asarray(lmap.bias, np.float64)
    alone = not np.any(found.rest)
    return MapRanks(count(found.whole, whole, bias), None if alone else count(found.rest, whole - first, bias + first))


def keeping_prediction(
    model: Decoder, u: Float[np.ndarray, "d k"], y: Float[np.ndarray, " d"], rest: Float[np.ndarray, " d"]
) -> int | None:
    r"""From how many components on $U_k U_k^\top y + \text{rest}$ predicts as $y + \text{rest}$ does.

    $J$ truncated to `k` components gives $U_k U_k^\top J x$.

    Args:
        model: the decoder, for its unembedding.
        u: left singular vectors, the largest first.
        y: $J x$.
        rest: what is added to it untruncated: the bias.

    Returns:
        The least number for which it and all larger ones keep the top token and a KL divergence below `KL`; 0 where the
        rest alone does.
    """
    points = np.concatenate([rest[None], rest[None] + np.cumsum((u * (u.T @ y)[None]).T, axis=0)])
    whole = jnp.asarray(y + rest, model.dtype)
    kept: list[np.ndarray] = []
    for start in range(0, len(points), BATCH):
        part = points[start : start + BATCH]
        padded = np.concatenate([part, np.zeros((BATCH - len(part), len(y)))])
        kept.append(np.asarray(_same(model, jnp.asarray(padded, model.dtype), whole))[: len(part)])
    differing = np.flatnonzero(~np.concatenate(kept))
    return int(differing[-1]) + 1 if len(differing) else 0


@jax.jit
def _same(model: Decoder, points: Float[Array, "b d"], whole: Float[Array, " d"]) -> Array:
    """Whether each point predicts as the whole does."""
    expected = jax.nn.log_softmax(model.unembed(whole))
    logits = jax.nn.log_softmax(model.unembed(points), axis=-1)
    divergence = jnp.sum(jnp.exp(expected)[None] * (expected[None] - logits), axis=-1)
    return (jnp.argmax(logits, axis=-1) == jnp.argmax(expected)) & (divergence < KL)
