r"""Attention patterns that are never whole: probabilities recomputed by blocks, in both directions of the held map.

A pattern of $t$ tokens is $t^2$ numbers a head. Kept instead are the queries, the keys and each row's normaliser
$\ell_{ht} = \log \sum_s e^{z_{hts}}$, from which any block of $p_{hts} = e^{z_{hts} - \ell_{ht}}$ follows. Mixing scans
over blocks of queries and, within, of keys. It is linear in the values, so JAX transposes it; its body is under
`jax.checkpoint`, so that a block of probabilities lives no longer than its product. Blocks of keys that no query of a
block sees are passed over.

Source: Dao et al., "FlashAttention", 2022, for the normalisers and the recomputation.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.nn.layers import at_least_float32, product

BLOCK = 256
"""Queries, and keys, whose probabilities are in memory together."""

NEVER = -1e30
"""The score of a key that is not seen: its exponential is 0 and has a derivative, which that of -inf has not."""

BEYOND = np.iinfo(np.int32).max
"""The position of a key that is padding: after every query."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockedPattern:
    r"""The pattern $p_{hts} = \exp(z_{hts} - \ell_{ht})$ of a long prompt.

    Attributes:
        q: the rotated queries, ``[t, h, k]``.
        k: the rotated keys, ``[s, n, k]``.
        normaliser: $\ell_{ht}$, ``[h, t]``.
        positions: of the queries, ``[t]``.
        window: how many tokens a query sees, itself included.
        scale: of the scores.
        softcap: of the scores, if they have one.
    """

    q: Leaf
    k: Leaf
    normaliser: Leaf
    positions: Leaf
    window: Leaf
    scale: float = field(metadata={"static": True})
    softcap: float | None = field(metadata={"static": True})

    def last(self, queries: int) -> "BlockedPattern":
        """The rows of the last `queries` positions; 0 for all."""
        rows = {"q": self.q[-queries:], "positions": self.positions[-queries:]}
        return replace(self, normaliser=self.normaliser[:, -queries:], **rows)

    def first(self, tokens: int) -> "BlockedPattern":
        """The first `tokens` queries and keys, of one or of a stack."""
        parts = {"q": self.q[..., :tokens, :, :], "k": self.k[..., :tokens, :, :]}
        return replace(self, normaliser=self.normaliser[..., :tokens], positions=self.positions[..., :tokens], **parts)

    def row(self, position: int | Int[Array, ""]) -> Float[Array, "h s"]:
        """The probabilities of the query at `position`."""
        at = {"q": self.q[position][None], "positions": self.positions[position][None]}
        query = replace(self, normaliser=self.normaliser[:, position][:, None], **at)
        return query.probabilities(self.k, jnp.arange(self.k.shape[0]))[:, 0].astype(self.q.dtype)

    def probabilities(self, k: Float[Array, "s n k"], keys: Int[Array, " s"]) -> Float[Array, "h t s"]:
        """The block of probabilities of the keys `k` at positions `keys`."""
        return jnp.exp(self.scores(k, keys) - self.normaliser[:, :, None])

    def scores(self, k: Float[Array, "s n k"], keys: Int[Array, " s"]) -> Float[Array, "h t s"]:
        """The scores of the keys `k` at positions `keys`, `NEVER` where a query does not see one."""
        z = scores(self.q, k, self.scale, self.softcap)
        return jnp.where(visible(self.positions, keys, self.window)[None], z, NEVER)


def scores(
    q: Float[Array, "t h k"], k: Float[Array, "s n k"], scale: float, softcap: float | None
) -> Float[Array, "h t s"]:
    r"""$z_{hts} = q_{th} \cdot k_{s}\,\text{scale}$, under the softcap $c \tanh(z / c)$ if there is one."""
    t, h, _ = q.shape
    s, n, _ = k.shape
    grouped = q.reshape(t, n, h // n, -1)
    # In this order of operands XLA writes the scores as they are read on a CPU; in the other one it turns each block.
    z = product("snk,tngk->ngts", k, grouped).reshape(h, t, s) * scale
    z = at_least_float32(z)
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def visible(positions: Int[Array, " t"], keys: Int[Array, " s"], window: Int[Array, ""]) -> Bool[Array, "t s"]:
    """Which keys a query sees: itself and those before it, `window` in all."""
    distance = positions[:, None] - keys[None, :]
    return (distance >= 0) & (distance < window)


def mix(pattern: Float[Array, "h t s"], v: Float[Array, "s *b n k"]) -> Float[Array, "t *b h k"]:
    r"""$\sum_s p_{hts}\,v_s$; query head $h$ reads key-value head $\lfloor h n / H \rfloor$."""
    h, t, s = pattern.shape
    *batch, n, k = v.shape[1:]
    # The order of operands matters as in `scores`.
    mixed = product("s...nk,ngts->t...ngk", v, pattern.reshape(n, h // n, t, s))
    return mixed.reshape(t, *batch, h, k)


def blocked_pattern(
    q: Float[Array, "t h k"],
    k: Float[Array, "s n k"],
    *,
    positions: Int[Array, " t"],
    scale: float,
    window: Int[Array, ""],
    softcap: float | None,
) -> BlockedPattern:
    """The pattern of these queries and keys; one pass over the blocks, for the normalisers."""
    t, h, _ = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    pattern = BlockedPattern(q, k, jnp.zeros((h, t), wide), positions, window, scale, softcap)

    def of(rows: BlockedPattern) -> Float[Array, "t h"]:
        def grow(total: Array, k: Array, keys: Array) -> Array:
            return jnp.logaddexp(total, jax.nn.logsumexp(rows.scores(k, keys), axis=-1))

        return _over_keys(rows, grow, jnp.full(rows.normaliser.shape, NEVER, wide)).T

    return replace(pattern, normaliser=_over_queries(pattern, of).T)


def blocked_attend(pattern: BlockedPattern, v: Float[Array, "s *b n k"]) -> Float[Array, "t *b h k"]:
    """`mix` of the whole pattern."""
    *batch, _, k = v.shape[1:]

    def of(rows: BlockedPattern) -> Float[Array, "t *b h k"]:
        def add(z: Array, k: Array, keys: Array, v: Array) -> Array:
            return z + mix(rows.probabilities(k, keys).astype(v.dtype), v)

        return _over_keys(rows, add, jnp.zeros((rows.q.shape[0], *batch, rows.q.shape[1], k), v.dtype), v)

    return _over_queries(pattern, of)


def _over_queries(pattern: BlockedPattern, of: Callable[[BlockedPattern], Array]) -> Float[Array, "t ..."]:
    """What `of` gives for each block of queries, which lead its result."""
    t = pattern.q.shape[0]
    size = min(BLOCK, t)
    parts = (
        _in_blocks(pattern.q, size),
        _in_blocks(pattern.normaliser.T, size),
        _in_blocks(pattern.positions, size, fill=-1),  # these see nothing
    )

    def rows(parts: tuple[Array, Array, Array]) -> Array:
        q, normaliser, positions = parts
        return of(replace(pattern, q=q, normaliser=normaliser.T, positions=positions))

    found = jax.lax.map(rows, parts)
    return found.reshape(-1, *found.shape[2:])[:t]


def _over_keys(rows: BlockedPattern, step: Callable[..., Array], carry: Array, *xs: Float[Array, "s ..."]) -> Array:
    """`carry` after ``step(carry, k, positions, *xs)`` for each block of keys that a query of `rows` sees."""
    s = rows.k.shape[0]
    size = min(BLOCK, s)
    positions = _in_blocks(jnp.arange(s), size, fill=BEYOND)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry: Array, block: tuple[Array, ...]) -> tuple[Array, None]:
        seen = jnp.any(visible(rows.positions, block[1], rows.window))
        return jax.lax.cond(seen, step, lambda carry, *_: carry, carry, *block), None

    blocks = (_in_blocks(rows.k, size), positions, *(_in_blocks(x, size) for x in xs))
    return jax.lax.scan(body, carry, blocks)[0]


def _in_blocks(x: Array, size: int, fill: int = 0) -> Array:
    """`x` in blocks of `size` along its first axis, the last one filled up."""
    missing = -x.shape[0] % size
    padded = jnp.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)], constant_values=fill)
    return padded.reshape(-1, size, *x.shape[1:])
