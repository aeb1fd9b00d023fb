r"""Attention patterns of long prompts, recomputed block by block in both directions of the frozen model.

A pattern of $t$ tokens is $t^2$ numbers a head. Stored instead are the queries, the keys and the normaliser of each
row, $\ell_{ht} = \log \sum_s e^{z_{hts}}$, from which any block of $p_{hts} = e^{z_{hts} - \ell_{ht}}$ follows. Mixing
scans over blocks of queries and, for each of them, over blocks of keys. It is linear in the values, so that JAX can
transpose it; its body is under `jax.checkpoint`, so that a block of probabilities lives no longer than its product.
Blocks of keys that no query of a block sees are skipped.

Source: Dao et al., "FlashAttention", 2022, for the normalisers and the recomputation.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.nn.patterns import Pattern, mix, scores, visible

BLOCK = 256
"""Queries, and keys, whose probabilities are in memory together."""

MASKED_SCORE = -1e30
"""The score of a key that a query does not see: its exponential is 0 and, unlike that of -inf, has a derivative."""

PADDED_KEY = np.iinfo(np.int32).max
"""The position of a key that pads a block: after every query, so that none sees it."""

PADDED_QUERY = -1
"""The position of a query that pads a block: before every key, so that it sees none."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocked(Pattern):
    r"""The pattern $p_{hts} = \exp(z_{hts} - \ell_{ht})$ of a long prompt.

    Attributes:
        q: the rotated queries, ``[t, h, k]``.
        k: the rotated keys, ``[s, n, k]``.
        normaliser: $\ell_{ht}$, ``[h, t]``.
        positions: the positions of the queries, ``[t]``.
        first_visible: the first key that each query sees, ``[t]``.
        scale: the factor of the scores.
        softcap: the bound of the scores, if they have one.
    """

    q: Leaf
    k: Leaf
    normaliser: Leaf
    positions: Leaf
    first_visible: Leaf
    scale: float = field(metadata={"static": True})
    softcap: float | None = field(metadata={"static": True})

    def first(self, tokens: int) -> "Blocked":
        """The first queries and keys."""
        q, k = self.q[..., :tokens, :, :], self.k[..., :tokens, :, :]
        positions, first_visible = self.positions[..., :tokens], self.first_visible[..., :tokens]
        normaliser = self.normaliser[..., :tokens]
        return replace(self, q=q, k=k, normaliser=normaliser, positions=positions, first_visible=first_visible)

    def row(self, position: int | Int[Array, ""]) -> Float[Array, "h s"]:
        """The probabilities of one query, computed."""
        rows = {name: getattr(self, name)[position][None] for name in ("q", "positions", "first_visible")}
        query = replace(self, **rows, normaliser=self.normaliser[:, position][:, None])
        return query.probabilities(self.k, jnp.arange(self.k.shape[0]))[:, 0].astype(self.q.dtype)

    def array(self) -> Float[Array, "h t s"]:
        """The probabilities of each query in turn."""
        return jnp.moveaxis(jax.lax.map(self.row, jnp.arange(self.q.shape[0])), 0, 1)

    def mix(self, values: Float[Array, "s *b n k"], last: int = 0) -> Float[Array, "q *b h k"]:
        """A sum over blocks of keys, for each block of queries."""
        *batch, _, k = values.shape[1:]

        def mix_rows(rows: Blocked) -> Float[Array, "t *b h k"]:
            def add_block(z: Array, keys: Array, positions: Array, values: Array) -> Array:
                return z + mix(rows.probabilities(keys, positions).astype(values.dtype), values)

            zeros = jnp.zeros((rows.q.shape[0], *batch, rows.q.shape[1], k), values.dtype)
            return _over_keys(rows, add_block, zeros, values)

        rows = {name: getattr(self, name)[-last:] for name in ("q", "positions", "first_visible")}
        return _over_queries(replace(self, **rows, normaliser=self.normaliser[:, -last:]), mix_rows)

    def probabilities(self, k: Float[Array, "s n k"], positions: Int[Array, " s"]) -> Float[Array, "h t s"]:
        """The probabilities of the keys `k`, which stand at `positions`."""
        return jnp.exp(self.scores(k, positions) - self.normaliser[:, :, None])

    def scores(self, k: Float[Array, "s n k"], positions: Int[Array, " s"]) -> Float[Array, "h t s"]:
        """The scores of the keys `k`, which stand at `positions`; `MASKED_SCORE` where a query does not see one."""
        z = scores(self.q, k, self.scale, self.softcap)
        return jnp.where(visible(self.positions, positions, self.first_visible)[None], z, MASKED_SCORE)


def blocked_pattern(
    q: Float[Array, "t h k"],
    k: Float[Array, "s n k"],
    *,
    positions: Int[Array, " t"],
    scale: float,
    first_visible: Int[Array, " t"],
    softcap: float | None,
    sinks: Float[Array, " h"] | None = None,
) -> Blocked:
    """The pattern of these queries and keys. It takes one pass over the blocks, for the normalisers.

    The score of a sink is in the normaliser alone, because it has no value.
    """
    t, h, _ = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    pattern = Blocked(q, k, jnp.zeros((h, t), wide), positions, first_visible, scale, softcap)

    def normalisers(rows: Blocked) -> Float[Array, "t h"]:
        def add_block(total: Array, keys: Array, positions: Array) -> Array:
            return jnp.logaddexp(total, jax.nn.logsumexp(rows.scores(keys, positions), axis=-1))

        first = jnp.full(h, MASKED_SCORE, wide) if sinks is None else sinks.astype(wide)
        return _over_keys(rows, add_block, jnp.broadcast_to(first[:, None], rows.normaliser.shape)).T

    return replace(pattern, normaliser=_over_queries(pattern, normalisers).T)


def _over_queries(pattern: Blocked, function: Callable[[Blocked], Array]) -> Float[Array, "t ..."]:
    """The results of `function` for each block of queries, which lead its result, put together."""
    t = pattern.q.shape[0]
    size = min(BLOCK, t)
    blocks = (
        in_blocks(pattern.q, size),
        in_blocks(pattern.normaliser.T, size),
        in_blocks(pattern.positions, size, PADDED_QUERY),
        in_blocks(pattern.first_visible, size),
    )

    def apply(block: tuple[Array, ...]) -> Array:
        q, normaliser, positions, first_visible = block
        return function(
            replace(pattern, q=q, normaliser=normaliser.T, positions=positions, first_visible=first_visible)
        )

    results = jax.lax.map(apply, blocks)
    return results.reshape(-1, *results.shape[2:])[:t]


def _over_keys(rows: Blocked, step: Callable[..., Array], carry: Array, *xs: Float[Array, "s ..."]) -> Array:
    """`carry` after ``step(carry, k, positions, *xs)`` for each block of keys that a query of `rows` sees."""
    s = rows.k.shape[0]
    size = min(BLOCK, s)
    positions = in_blocks(jnp.arange(s), size, PADDED_KEY)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry: Array, block: tuple[Array, ...]) -> tuple[Array, None]:
        any_visible = jnp.any(visible(rows.positions, block[1], rows.first_visible))
        return jax.lax.cond(any_visible, step, lambda carry, *_: carry, carry, *block), None

    blocks = (in_blocks(rows.k, size), positions, *(in_blocks(x, size) for x in xs))
    return jax.lax.scan(body, carry, blocks)[0]


def in_blocks(x: Array, size: int, padding: int = 0) -> Array:
    """`x` in blocks of `size` along its first axis, the last of them padded."""
    missing = -x.shape[0] % size
    padding_rows = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
    padded = jnp.pad(x, padding_rows, constant_values=padding) if missing else x
    return padded.reshape(-1, size, *x.shape[1:])
