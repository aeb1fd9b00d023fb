r"""The rank of a local linear map, counted in six ways, with the first token and without it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlin import plots
from jaxlin.common.arguments import checked
from jaxlin.linearize.linalg.gram_matrix import MAX_BAND_BYTES, gram_from_rows, left_vectors
from jaxlin.linearize.linalg.triplets import effective_rank, stable_rank
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sharding import to_numpy
from jaxlin.results import Result, html, traced_to
from jaxlin.results.tables import scalars, stacked

MAX_KL = 0.01
"""The KL divergence, in nats, below which the prediction of a truncated map counts as that of the full map."""

TRUNCATIONS_PER_BATCH = 32
"""The number of truncated outputs that are unembedded together; each needs logits of the whole vocabulary."""


@dataclass(frozen=True, eq=False)
class Ranks(Result):
    r"""The ranks of a map with singular values $\sigma_i$ and energies $\sigma_i^2$.

    Attributes:
        stable: $\sum_i \sigma_i^2 / \sigma_1^2$.
        effective: $\exp(-\sum_i p_i \ln p_i)$ with $p_i = \sigma_i / \sum_j \sigma_j$.
        participation: $(\sum_i \sigma_i^2)^2 / \sum_i \sigma_i^4$.
        energy90: the least number of components that have 90 % of the energy.
        energy99: the least number that have 99 %.
        prediction: the least `k` such that the map truncated to `k` components, or to any larger number, predicts the
            same most likely token, with a KL divergence below `MAX_KL` from the prediction of the full map; None where
            the map does not end at the final norm.
    """

    stable: float
    effective: float
    participation: float
    energy90: int
    energy99: int
    prediction: int | None = None


@dataclass(frozen=True, eq=False)
class MapRanks(Result):
    """The ranks of a map, with and without its first token.

    Attributes:
        joint: the ranks of the joint map of all tokens.
        without_first: the ranks of the map without the first token, whose embedding dominates many spectra; None where
            there is no other token. For its `prediction`, the first token's contribution is added untruncated.
    """

    joint: Ranks
    without_first: Ranks | None

    def __iter__(self) -> Iterator[Any]:
        yield from (self.joint, self.without_first)

    def tables(self) -> list[dict[str, Any]]:
        """A row for each map."""
        maps = {"all tokens": self.joint, "without the first token": self.without_first}
        rows = [{"map": name, **scalars(ranks)} for name, ranks in maps.items() if ranks is not None]
        return [stacked([{key: [value] for key, value in row.items()} for row in rows])]

    def _draw(self, ax: Any) -> None:
        """The ranks of both maps, side by side."""
        table = self.tables()[0]
        names = [name for name in table if name != "map"]
        rows = [
            [np.nan if table[name][i] is None else table[name][i] for name in names] for i in range(len(table["map"]))
        ]
        plots.token_bars(ax, dict(zip(table["map"], np.array(rows, float), strict=True)), names)
        plots.write(ax, title="Ranks of the map", ylabel="rank")

    def _repr_html_(self) -> str:
        """A row for each map."""
        return html.heading(self) + html.rows(self, self.tables()[0])


@checked
def ranks_of_spectrum(s: Float[np.ndarray, " k"], prediction: int | None = None) -> Ranks:
    """The ranks of a map from all of its singular values, the largest first."""
    energy = np.square(s.astype(np.float64))
    shares = np.cumsum(energy) / np.sum(energy)
    # Rounding may leave a cumulative share just below the threshold that it equals.
    count90, count99 = (min(int(np.searchsorted(shares, least - 1e-12)) + 1, len(s)) for least in (0.9, 0.99))
    participation = float(np.sum(energy) ** 2 / np.sum(np.square(energy)))
    return Ranks(stable_rank(s), effective_rank(s), participation, count90, count99, prediction)


@checked
def map_ranks(lmap: LocalMap, *, memory: int = MAX_BAND_BYTES) -> MapRanks:
    """The ranks of `lmap`, from its rows; the map is not stored, see `jaxlin.linearize.linalg.gram_matrix`.

    Args:
        lmap: the map.
        memory: the bytes of rows that may be in memory together.

    Raises:
        JaxlinError: `memory` is too small for one block of rows.
    """
    gram = gram_from_rows(lmap.rmatvec, lmap.shape, lmap.output.dtype, block=lmap.default_block, memory=memory)
    x = np.asarray(lmap.x)
    first_x = np.where(np.arange(len(x))[:, None] == 0, x, 0)
    first, joint = to_numpy(lmap.matvec(np.stack([first_x, x]))).astype(np.float64)

    def ranks(matrix: np.ndarray, product: np.ndarray, offset: np.ndarray) -> Ranks:
        u, s = left_vectors(matrix)
        return ranks_of_spectrum(s, prediction_rank(lmap.model, u, product, offset) if lmap.target.final else None)

    bias = np.asarray(lmap.bias, np.float64)
    without_first = ranks(gram.rest, joint - first, bias + first) if np.any(gram.rest) else None
    result = MapRanks(ranks(gram.joint, joint, bias), without_first)
    return traced_to(result, lmap.model, lmap.x, rule=lmap.rule, position=lmap.position)


def prediction_rank(
    model: Decoder, u: Float[np.ndarray, "d k"], product: Float[np.ndarray, " d"], offset: Float[np.ndarray, " d"]
) -> int:
    r"""The least `k` from which on $U_k U_k^\top J x + c$ gives the same prediction as $J x + c$.

    $U_k U_k^\top J$ is $J$ truncated to its `k` largest components.

    Args:
        model: the decoder, for its unembedding.
        u: the left singular vectors, the largest first.
        product: $J x$.
        offset: $c$, which is not truncated: the bias, and the contribution of tokens that are not in $J$.

    Returns:
        The least `k` for which this and all larger truncations have the same most likely token and a KL divergence
        below `MAX_KL`; 0 where the offset by itself has.
    """
    truncated = np.concatenate([offset[None], offset[None] + np.cumsum((u * (u.T @ product)[None]).T, axis=0)])
    full = jnp.asarray(product + offset, model.dtype)
    same: list[np.ndarray] = []
    for start in range(0, len(truncated), TRUNCATIONS_PER_BATCH):
        batch = truncated[start : start + TRUNCATIONS_PER_BATCH]
        # Padded, so that all batches have one shape and the program is compiled once.
        padded = np.concatenate([batch, np.zeros((TRUNCATIONS_PER_BATCH - len(batch), len(product)))])
        same.append(np.asarray(_predicts_same(model, jnp.asarray(padded, model.dtype), full))[: len(batch)])
    different = np.flatnonzero(~np.concatenate(same))
    return int(different[-1]) + 1 if len(different) else 0


@jax.jit
def _predicts_same(model: Decoder, outputs: Float[Array, "b d"], full: Float[Array, " d"]) -> Bool[Array, " b"]:
    """Whether each of `outputs` has the most likely token of `full`, and a KL divergence from it below `MAX_KL`."""
    expected = jax.nn.log_softmax(model.unembed(full))
    log_probabilities = jax.nn.log_softmax(model.unembed(outputs), axis=-1)
    divergence = jnp.sum(jnp.exp(expected)[None] * (expected[None] - log_probabilities), axis=-1)
    return (jnp.argmax(log_probabilities, axis=-1) == jnp.argmax(expected)) & (divergence < MAX_KL)
